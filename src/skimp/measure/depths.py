"""Where tokens leave the model early, and with what logits, worked out in one pass.

With `kv: exact` later tokens find the keys and values of the full model, so every hidden state is
the one that a pass without exits has, and which token leaves where follows from that one pass:
nothing has to be decoded. Hooks keep the states after the probed layers at the positions wanted,
and the engine's own probes look at them. Only rounding may tell the two apart, where a score falls
right on the threshold.

A probe may read a few rows of the head. The token it emits is the likeliest of those; the logits
here are of the full head on the same translated state, since the log-likelihood of a given token
is nothing where it is no candidate.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skimp.errors import EvaluationError
from skimp.methods.exit.probe import Probes
from skimp.methods.exit.section import Exit, by_exit
from skimp.models.anatomy import Anatomy
from skimp.models.head import Head
from skimp.plan import Plan

Decide = Literal["token", "input"]
"""Whether each scored token has a depth of its own, as when decoding, or its input one for all."""

_ROWS = 512  # states looked at together
_ELEMENTS = 2**25  # of the head's rows that are copied for them


@dataclass(frozen=True)
class Left:
    """Of n positions: after how many layers each was decided (all of them where it did not leave),
    the token emitted, both [n], and the logits [n, V] of the full head there.

    `place` [n] is the number of the probe that it left at, or the number of probes.
    """

    depths: Tensor
    tokens: Tensor
    logits: Tensor
    place: Tensor


States = dict[int, Tensor]
"""Hidden states [n, d] by place: after so many layers of the planned model."""


class Leaving:
    """Decides where the positions of a pass of `model` leave.

    Attributes:
        decide: whether every position has a depth of its own, or each input one (as AdaInfer's).
        section: the plan's exits.
        layers: how many layers the planned model has.
        looks: the number of a probe by place, ascending: after so many layers.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, *, decide: Decide = "token", bar: float | None = None
    ) -> None:
        """`model` carries the plan already; `bar` is taken in place of the plan's threshold.

        Raises:
            EvaluationError: the plan has no exits, or `kv: propagate`.
            PlanError: exits that were not fitted, or a family without a final norm.
        """
        section = by_exit(plan)
        if section is None:
            raise EvaluationError("exit: the plan has none, so no token leaves early; add some.")
        refuse_propagated(section)
        anatomy = Anatomy.of(model)
        self.decide: Decide = decide
        self.section: Exit = section
        self.layers = len(anatomy.layers)
        self._model: Any = model
        self._blocks = list(model.get_submodule(anatomy.family.layers).children())
        self.head = Head.read(model)
        self._norm = model.get_submodule(anatomy.family.final_norm)
        self.probes = Probes(section, plan.values, self._norm, self.head, bar=bar)
        self.looks = section.places(anatomy)

    @contextmanager
    def watching(self, position: Tensor, also: tuple[int, ...] = ()) -> Iterator[States]:
        """Inside the block a pass fills in the states at flat positions [n] of its [B, S].

        Those at the probes' places, and at the places in `also` (1: after the first layer).
        """
        seen: States = {}

        def keep(place: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                bare = output[0] if isinstance(output, tuple) else output
                seen[place] = bare.flatten(0, 1)[position.to(bare.device)]  # a copy

            return hook

        handles = [
            self._blocks[place - 1].register_forward_hook(keep(place))
            for place in sorted({*self.looks, *also})
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def leave(self, states: States, logits: Tensor, asked: Sequence[Tensor] | None = None) -> Left:
        """Where positions leave.

        Args:
            states: what :meth:`watching` gave.
            logits: the full model's, [n, V]; they are what a position has that does not leave.
            asked: positions [m] to be told of, and for each the position that decides [m]; None
                for all, each by itself.
        """
        with torch.inference_mode():
            tokens, scores = self._look(states)
            reached = scores >= self.probes.threshold
            stays = torch.ones_like(reached[:1])
            place = torch.cat([reached, stays]).int().argmax(0)
            if asked is not None:
                which, first = (each.to(place.device) for each in asked)
                place, tokens, logits = place[first], tokens[:, which], logits[which]
                states = {where: state[which] for where, state in states.items()}
            depths = torch.tensor([*self.looks, self.layers], device=place.device)[place]
            taken = torch.cat([tokens, logits.argmax(-1)[None]]).gather(0, place[None])[0]
            found = logits
            for number, (where, index) in enumerate(self.looks.items()):
                rows = (place == number).nonzero().squeeze(-1)
                if len(rows):
                    found = found.clone() if found is logits else found
                    z = self.probes.state(index, states[where][rows])
                    found[rows] = self.head.logits(z).to(found.dtype)
        return Left(depths.cpu(), taken.cpu(), found, place.cpu())

    def lens(self, states: States, place: int, *, translated: bool) -> Tensor:
        """The likeliest token [n] of the full head at a place, translated as the probe there has
        it or plain (the logit lens)."""
        with torch.inference_mode():
            parts = []
            for rows in states[place].split(_ROWS):
                translate = translated and place in self.looks
                z = self.probes.state(self.looks[place], rows) if translate else self._norm(rows)
                parts.append(self.head.logits(z).argmax(-1))
            return torch.cat(parts).cpu()

    def _look(self, states: States) -> tuple[Tensor, Tensor]:
        """Each probe's token and score, both [probes, n]."""
        count = len(next(iter(states.values())))
        tokens: list[list[Tensor]] = []
        scores: list[list[Tensor]] = []
        for start in range(0, count, self._at_once()):
            rows = slice(start, start + self._at_once())
            trace, looks = self.probes.begin(count), []
            for place, index in self.looks.items():
                looks.append(self.probes.look(index, states[place][rows], trace))
            tokens.append([look.token for look in looks])
            scores.append([look.score for look in looks])
        return _joined(tokens), _joined(scores)

    def _at_once(self) -> int:
        section = self.section
        if section.candidates and not section.screen:  # each state copies rows of its own
            size = section.candidates * self.head.weight.shape[1]
            return max(1, min(_ROWS, _ELEMENTS // size))
        return _ROWS


def refuse_propagated(section: Exit) -> None:
    """Raise EvaluationError for exits that change what later tokens see."""
    if section.kv != "exact":
        raise EvaluationError(
            f"exit.kv: {section.kv} changes what later tokens see, so one pass cannot tell where "
            "they leave; measure the quality of these exits with kv: exact."
        )


def leaving_of(model: nn.Module, plan: Plan | None, decide: Decide = "token") -> Leaving | None:
    """What decides where tokens of a planned model leave; None for a plan without exits."""
    return Leaving(model, plan, decide=decide) if plan and by_exit(plan) else None


def _joined(parts: list[list[Tensor]]) -> Tensor:
    """[chunks][probes][n] as [probes, all n]."""
    return torch.stack([torch.cat(each) for each in zip(*parts, strict=True)])
