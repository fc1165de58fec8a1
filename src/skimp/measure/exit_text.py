"""What early exits do to a model's predictions of held-out text, token by token in one pass.

Agreement is that of the token emitted with the dense model's likeliest. Perplexity is of the full
head on the state that left. There is no KL: what an engine draws from may be a few candidates
alone, and where the dense model's token is none of them it is infinite.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from skimp.errors import EvaluationError
from skimp.measure.depths import Leaving, Left, States
from skimp.measure.fidelity import Fidelity, batches, summary
from skimp.measure.scorer import evaluating
from skimp.measure.task_depths import shares
from skimp.methods.apply import apply
from skimp.methods.exit.section import SECTION
from skimp.methods.experts.section import by_prompt
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import SILENT, Progress

LENS_TOKENS = 512  # that the full head reads after every layer
SAMPLE_TOKENS = 160
_HEAD_ELEMENTS = 2**24  # logits in fp32 at once: 64 MB


@dataclass(frozen=True)
class Lens:
    """How often the likeliest token after `depth` layers is the full model's: of the bare final
    norm and head, and through the probe's translator where there is one."""

    depth: int
    plain: float
    translated: float | None


@dataclass(frozen=True)
class Sample:
    """The beginning of a text: of each token [n] but the first, after how many layers it was
    decided what to predict there, and whether that is what the full model predicts."""

    tokens: tuple[int, ...]
    depths: tuple[int, ...]
    agree: tuple[bool, ...]

    def to_dict(self, tokenizer: Any) -> dict[str, Any]:
        """Its `tokens` as text, one by one."""
        words = [tokenizer.decode([token]) for token in self.tokens]
        return {"tokens": words, "depths": list(self.depths), "agree": list(self.agree)}


@dataclass(frozen=True)
class AlongText:
    """What exits come to along text.

    `fidelity` is beside the dense model; its KL is not a number. `agreement` is with the planned
    model at full depth, and what was promised; `depths` [layers + 1] counts tokens by the layers
    that were run for them, `right` those of them that agree.
    """

    fidelity: Fidelity
    layers: int
    depths: tuple[int, ...]
    right: tuple[int, ...]
    lens: tuple[Lens, ...]
    sample: Sample | None

    @property
    def tokens(self) -> int:
        return sum(self.depths)

    @property
    def left_out(self) -> float:
        """The mean share of layers left out."""
        ran = sum(depth * count for depth, count in enumerate(self.depths))
        return 1 - ran / self.tokens / self.layers

    @property
    def exits(self) -> float:
        """The share of tokens that leave before the last layer."""
        return sum(self.depths[: self.layers]) / self.tokens

    @property
    def agreement(self) -> float:
        return sum(self.right) / self.tokens

    def to_dict(self, tokenizer: Any) -> dict[str, Any]:
        """Plain data for JSON."""
        seen = [depth for depth, count in enumerate(self.depths) if count]
        return {
            "left_out": self.left_out,
            "exits": self.exits,
            "agreement": self.agreement,
            "tokens": self.tokens,
            "depths": shares(self.depths),
            "agreement_by_depth": {str(d): self.right[d] / self.depths[d] for d in seen},
            "lens": [vars(each) for each in self.lens],
            "sample": self.sample.to_dict(tokenizer) if self.sample else None,
        }


def along_text(
    model: nn.Module,
    plan: Plan,
    documents: Sequence[Tensor],
    *,
    batch_tokens: int = 2048,
    progress: Progress = SILENT,
) -> AlongText:
    """Measure the plan's exits on token `documents`, each [tokens], of which all but the first is
    predicted.

    Args:
        model: dense; left as it was.
        batch_tokens: tokens per forward pass.

    Raises:
        EvaluationError: no document of two tokens, `kv: propagate`, no exits, or experts that a
            prompt chooses, which have no part in one pass over a text.
    """
    if by_prompt(plan) is not None:
        raise EvaluationError(
            "exit: text is read in one pass, in which experts that a prompt chooses have no part; "
            "measure such a plan on tasks alone, with --tokens 0."
        )
    documents = [document for document in documents if len(document) > 1]
    if not documents:
        raise EvaluationError("documents: none has two tokens, so there is nothing to predict.")
    work = _Work(model, plan, documents)
    with progress.task("where tokens leave", len(documents)) as step, evaluating(model):
        for numbers in batches(model, [len(document) for document in documents], batch_tokens):
            work.run(numbers)
            for _ in numbers:
                step()
        lens = _lens(model, plan, documents)
    found = replace(summary(work.sums), kl=math.nan, kl_interval=(math.nan, math.nan))
    layers = len(work.counts) - 1
    return AlongText(
        found, layers, tuple(work.counts), tuple(work.right), lens, work.sample(documents[0])
    )


class _Work:
    """Sums over documents as they are read."""

    def __init__(self, model: nn.Module, plan: Plan, documents: Sequence[Tensor]) -> None:
        self.model: Any = model
        self.plan, self.documents = plan, documents
        self.alone = not any(name != SECTION for name, data in plan.sections.items() if data)
        self.anatomy = Anatomy.of(model)
        self.sums = torch.zeros(len(documents), 7, dtype=torch.float64)
        self.counts: list[int] = []
        self.right: list[int] = []
        self.first: tuple[Tensor, Tensor] | None = None

    def run(self, numbers: list[int]) -> None:
        """One batch: dense, then planned, so that nothing but the sums is kept."""
        rows = [self.documents[number] for number in numbers]
        ids, mask, position = laid_out(rows, self.model.get_input_embeddings().weight.device)
        dense = None if self.alone else _logits(self.model, ids, mask, position)
        with apply(self.model, self.plan, anatomy=self.anatomy):
            leaving = Leaving(self.model, self.plan)
            with leaving.watching(position) as states:
                logits = _logits(self.model, ids, mask, position)
            left = leaving.leave(states, logits)
        full = logits.argmax(-1).cpu()
        same = left.tokens == full
        self.counts = _added(self.counts, torch.bincount(left.depths, minlength=leaving.layers + 1))
        right = torch.bincount(left.depths[same], minlength=leaving.layers + 1)
        self.right = _added(self.right, right)
        start, before = 0, logits if dense is None else dense
        for number, row in zip(numbers, rows, strict=True):
            part = slice(start, start + len(row) - 1)
            self.sums[number] = _sums(before[part], left, part, row[1:])
            if number == 0:
                self.first = left.depths[part], same[part]
            start = part.stop

    def sample(self, document: Tensor) -> Sample | None:
        """Of the first document."""
        if self.first is None:
            return None
        depths, same = (each[:SAMPLE_TOKENS].tolist() for each in self.first)
        tokens = document[1 : 1 + SAMPLE_TOKENS].tolist()
        return Sample(tuple(tokens), tuple(depths), tuple(same))


def laid_out(rows: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids [B, S] padded on the right, a mask if any is, and the flat positions [n] that predict."""
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    column = torch.arange(ids.shape[1])
    real = column < lengths[:, None]
    position = (column < lengths[:, None] - 1).flatten().nonzero().squeeze(-1)
    mask = None if bool(real.all()) else real.long().to(device)
    return ids.to(device), mask, position


def _logits(model: Any, ids: Tensor, mask: Tensor | None, position: Tensor) -> Tensor:
    with torch.inference_mode():
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        return logits.flatten(0, 1)[position.to(logits.device)]


def _sums(dense: Tensor, left: Left, part: slice, target: Tensor) -> Tensor:
    """A document's sums as :mod:`skimp.measure.fidelity` has them; nothing for the KL."""
    true = target.to(dense.device)
    before, after = (_losses(each, true) for each in (dense, left.logits[part]))
    best, taken = dense.argmax(-1).cpu(), left.tokens[part]
    right, still = best == target.cpu(), taken == target.cpu()
    same, zero = (best == taken).double(), torch.zeros(len(target), dtype=torch.float64)
    lost, gained = (right & ~still).double(), (still & ~right).double()
    found = (torch.ones_like(zero), before, after, zero, same, lost, gained)
    return torch.stack([each.sum() for each in found])


def _losses(logits: Tensor, target: Tensor) -> Tensor:
    size = max(1, _HEAD_ELEMENTS // logits.shape[-1])
    parts = [
        rows.float().log_softmax(-1).gather(-1, true[:, None])[:, 0]
        for rows, true in zip(logits.split(size), target.split(size), strict=True)
    ]
    return -torch.cat(parts).double().cpu()


def _lens(model: Any, plan: Plan, documents: Sequence[Tensor]) -> tuple[Lens, ...]:
    """Agreement after every layer, on tokens spread over a few of the documents."""
    size = len(documents[0])
    count = max(1, min(len(documents), LENS_TOKENS // size))
    some = [documents[n * len(documents) // count][: LENS_TOKENS + 1] for n in range(count)]
    ids, mask, position = laid_out(some, model.get_input_embeddings().weight.device)
    with apply(model, plan):
        leaving = Leaving(model, plan)
        every = tuple(range(1, leaving.layers + 1))
        with leaving.watching(position, every) as states:
            full = _logits(model, ids, mask, position).argmax(-1).cpu()
        return tuple(_one(leaving, states, place, full) for place in every)


def _one(leaving: Leaving, states: States, place: int, full: Tensor) -> Lens:
    plain = float((leaving.lens(states, place, translated=False) == full).float().mean())
    if place not in leaving.looks or place == leaving.layers:
        return Lens(place, plain, None)
    seen = leaving.lens(states, place, translated=True)
    translated = leaving.section.translator != "plain"
    return Lens(place, plain, float((seen == full).float().mean()) if translated else None)


def _added(sums: list[int], more: Tensor) -> list[int]:
    found = more.tolist()
    return [a + b for a, b in zip(sums, found, strict=True)] if sums else found
