"""How long a planned model's own answers stay those of the dense model, running freely."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skimp.engine import Engine
from skimp.errors import EvaluationError
from skimp.progress import SILENT, Progress


@dataclass(frozen=True)
class Divergence:
    """Greedy answers of two engines to the same prompts.

    `until_first` is the share of tokens before the first difference, mean over answers; `same` the
    share of answers without any. `by_position` is the share of answers whose token at a position
    is the dense model's, wherever they have differed before. `left_out` is the share of layers
    that the planned engine left out by early exits, over all tokens but each answer's first.
    """

    prompts: int
    new: int
    until_first: float
    same: float
    by_position: tuple[float, ...]
    left_out: float

    @property
    def agreement(self) -> float:
        """The mean over positions."""
        return sum(self.by_position) / len(self.by_position)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "by_position": list(self.by_position), "agreement": self.agreement}


def diverge(
    dense: Engine,
    planned: Engine,
    prompts: Sequence[Sequence[int]],
    new: int,
    *,
    progress: Progress = SILENT,
) -> Divergence:
    """Let both engines answer every prompt greedily with `new` tokens each, past any end of text.

    Raises:
        EvaluationError: no prompt, or no token.
        RequestError: a prompt does not fit the model's context together with its answer.
    """
    if not prompts or new < 1:
        raise EvaluationError(
            "prompts: there is nothing to answer; give one, and a token to write."
        )
    equal, depths = [], []
    with progress.task("answering freely", len(prompts)) as step:
        for prompt in prompts:
            wanted, _ = _answer(dense, prompt, new)
            found, deep = _answer(planned, prompt, new)
            equal.append([a == b for a, b in zip(wanted, found, strict=True)])
            depths.extend(deep)
            step()
    count, layers = len(prompts), len(planned.anatomy.layers)
    first = [row.index(False) if False in row else new for row in equal]
    return Divergence(
        prompts=count,
        new=new,
        until_first=sum(first) / count / new,
        same=sum(map(all, equal)) / count,
        by_position=tuple(sum(column) / count for column in zip(*equal, strict=True)),
        left_out=1 - sum(depths) / len(depths) / layers if depths else 0.0,
    )


@torch.inference_mode()
def _answer(engine: Engine, prompt: Sequence[int], new: int) -> tuple[list[int], list[int]]:
    """An answer's tokens, and after how many layers those behind the first were decided."""
    logits, state = engine.prefill([list(prompt)], new)
    tokens, depths = [int(logits.argmax(-1))], []
    while len(tokens) < new:
        logits = engine.decode(state, torch.tensor([tokens[-1]], device=engine.device))
        tokens.append(int(logits.argmax(-1)))
        depths.append(state.exits.depths[0] if state.exits else len(engine.anatomy.layers))
    return tokens, depths
