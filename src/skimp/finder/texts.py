"""Calibration text, parted for the search: what fits, what chooses, and what judges.

Documents are dealt out whole, kind by kind in turn, so that a part holds something of every kind
and what quality is reported on is in nothing that a plan was chosen or fitted on (design law 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from skimp.calibration.text import Calibration
from skimp.errors import CalibrationError

WINDOW, LEAST, PROMPT = 128, 24, 5 / 8  # tokens of a window, at least; the prompt's share of it
CHOOSING, JUDGING = 16, 48  # windows
FITTING = 4096  # tokens that plans of the frontier are fitted on
EXITS = 12_288  # and their exits, since a part of these must show how often tokens agree


@dataclass(frozen=True)
class Windows:
    """Texts [n, S] whose first `prompt` columns are prompts, and the document of each [n]."""

    ids: Tensor
    owners: Tensor
    prompt: int

    @property
    def tokens(self) -> int:
        """Answer tokens: those that are judged."""
        return len(self.ids) * (self.ids.shape[1] - self.prompt)


@dataclass(frozen=True)
class Texts:
    """`fitting` is for closed forms, `choosing` and `judging` for harm and for quality."""

    fitting: Calibration
    choosing: Windows
    judging: Windows

    @classmethod
    def of(
        cls,
        calibration: Calibration,
        seed: int,
        *,
        held_out: Sequence[Tensor] | None = None,
        judging: int = JUDGING,
    ) -> "Texts":
        """Part calibration text; `held_out` documents are judged on instead of a third of it.

        Raises:
            CalibrationError: too few documents, or documents too short.
        """
        order = calibration.sample(calibration.tokens + 1, seed)
        thirds = [order[number::3] for number in range(3)]
        judged = thirds[0] if held_out is None else list(held_out)
        chosen = thirds[1]
        fitted = [*thirds[2], *thirds[1]] if held_out is None else [*thirds[2], *thirds[0]]
        return cls(
            fitting=_part(calibration, fitted),
            choosing=cut(chosen, CHOOSING, "choose"),
            judging=cut(judged, judging, "judge"),
        )


def cut(documents: Sequence[Tensor], count: int, purpose: str) -> Windows:
    """At most `count` windows of one length: of each document one, then more.

    Raises:
        CalibrationError: fewer than four documents are long enough.
    """
    lengths = sorted((len(each) for each in documents if len(each) >= LEAST), reverse=True)
    if len(lengths) < 4:
        raise CalibrationError(
            f"calibration: to {purpose}, the search needs four documents of {LEAST} tokens or "
            f"more, but has {len(lengths)}; give longer text."
        )
    length = min(WINDOW, lengths[min(count, len(lengths)) - 1])
    parts = pieces(documents, length)[:count]
    return Windows(
        ids=torch.stack([part for part, _ in parts]),
        owners=torch.tensor([owner for _, owner in parts]),
        prompt=ceil(length * PROMPT),
    )


def pieces(documents: Sequence[Tensor], length: int) -> list[tuple[Tensor, int]]:
    """Pieces [length] and the document of each: the first of every document, then the second."""
    longest = max(map(len, documents))
    return [
        (each[start : start + length], owner)
        for start in range(0, longest - length + 1, length)
        for owner, each in enumerate(documents)
        if len(each) >= start + length
    ]


def _part(calibration: Calibration, documents: list[Tensor]) -> Calibration:
    return replace(
        calibration, documents=tuple(documents), kinds=(calibration.source,) * len(documents)
    )
