"""What a search over plans measured, as frozen data: the frontier, the choice, the promise.

As in :mod:`skimp.report.facts`, a number that was not measured is None.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from skimp.report.facts import Estimate, Kind

Source = Literal["dense", "finder", "rule"]
SOURCES: tuple[Source, ...] = ("dense", "finder", "rule")


@dataclass(frozen=True)
class LeftOut:
    """What a plan leaves out, by layers of the dense model.

    `keep`: share of FF neurons kept, one a layer; empty where every layer keeps all. `exits`:
    layers after which tokens may leave.
    """

    attention: tuple[int, ...] = ()
    ffn: tuple[int, ...] = ()
    keep: tuple[float, ...] = ()
    exits: tuple[int, ...] = ()

    @property
    def layers(self) -> int:
        """How many layers must be drawn to show all of it."""
        named = (*self.attention, *self.ffn, *self.exits)
        return max([len(self.keep), *(layer + 1 for layer in named)])

    def gone(self, kind: Kind, layer: int) -> float:
        """The share of a sublayer that is left out, 0 to 1."""
        if layer in (self.attention if kind == "attention" else self.ffn):
            return 1.0
        if kind == "ffn" and layer < len(self.keep):
            return 1.0 - self.keep[layer]
        return 0.0

    @property
    def mean_keep(self) -> float | None:
        """Mean share of neurons kept by the FFs that stay; None where no share is recorded."""
        shares = [keep for layer, keep in enumerate(self.keep) if layer not in self.ffn]
        return sum(shares) / len(shares) if shares else None


@dataclass(frozen=True)
class Candidate:
    """One plan that the search measured.

    `speedup` is of decode, measured beside dense; `bound` and `foretold` are what the bytes and the
    search's prices say of it. `loss` (difference to dense) and `kl` are in nats a token.
    """

    number: int
    source: Source
    name: str
    frontier: bool
    left_out: LeftOut = LeftOut()
    bound: float | None = None
    foretold: float | None = None
    speedup: Estimate = Estimate()
    kl: Estimate = Estimate()
    loss: Estimate = Estimate()
    agreement: float | None = None

    @property
    def timed(self) -> bool:
        """Whether its speed was measured; dense is its own measure."""
        return self.source == "dense" or self.speedup.value is not None

    @property
    def speed(self) -> float | None:
        """Where it stands on an axis of speed: its speedup, or else its byte bound."""
        if self.speedup.value is not None:
            return self.speedup.value
        return 1.0 if self.source == "dense" else self.bound

    @property
    def harm(self) -> float | None:
        """Its difference in loss; none at all for dense."""
        return 0.0 if self.loss.value is None and self.source == "dense" else self.loss.value


@dataclass(frozen=True)
class Promise:
    """What is promised of the chosen plan, in `words`, and what that rests on."""

    words: str | None = None
    holds: bool = False
    budget: str | None = None
    bound: float | None = None
    level: float | None = None
    tokens: float | None = None
    documents: float | None = None
    looked_at: float | None = None


@dataclass(frozen=True)
class Withheld:
    """A plan that is not offered, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Search:
    """Everything that one search measured. `complete` is False where its time ran out."""

    plans: tuple[Candidate, ...]
    workload: str | None = None
    budget: str | None = None
    costs: str | None = None
    seconds: float | None = None
    complete: bool = True
    chosen: int | None = None
    promise: Promise | None = None
    withheld: tuple[Withheld, ...] = ()
    command: str | None = None

    @property
    def choice(self) -> Candidate | None:
        """The chosen plan."""
        return next((plan for plan in self.plans if plan.number == self.chosen), None)

    @property
    def ordered(self) -> tuple[Candidate, ...]:
        """The frontier from slow to fast, then the plans that others beat."""
        return tuple(sorted(self.plans, key=lambda plan: (not plan.frontier, *_by_speed(plan))))

    @property
    def layers(self) -> int:
        """How many layers the plans name."""
        return max((plan.left_out.layers for plan in self.plans), default=0)


def _by_speed(plan: Candidate) -> Iterable[float]:
    return (plan.speed is None, plan.speed or 0.0, plan.number)
