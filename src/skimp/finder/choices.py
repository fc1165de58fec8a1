"""What can be done with each sublayer, as data: the alternatives that the search picks from.

A method takes part by an :class:`Offer`: a file of :mod:`skimp.finder.offers` that exports one as
`OFFER`. An offer says which alternatives there are, what each does to its sublayer, and how chosen
ones are written into a plan. What they cost is told by the plan that they would make. An offer may
be about the whole model instead: then it measures itself what each alternative saves and harms.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.calibration.text import Calibration
from skimp.errors import PlanError
from skimp.finder.texts import Windows
from skimp.methods import in_order
from skimp.models.anatomy import Anatomy, Kind
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.plan import Plan
from skimp.progress import Progress
from skimp.workload import Workload

Place = tuple[int, Kind | Literal["model"]]
WHOLE: Place = (-1, "model")
"""The place of what is chosen for the whole model."""


@dataclass(frozen=True, order=True)
class Choice:
    """An alternative to a sublayer (or the model) as it is: `offer` says whose, `level` how far it
    goes."""

    layer: int
    kind: Kind | Literal["model"]
    offer: str
    level: str

    @property
    def place(self) -> Place:
        return self.layer, self.kind

    @property
    def sublayer(self) -> in_order.Place:
        """The place, of one that is about a sublayer."""
        assert self.kind != "model"
        return self.layer, self.kind


Chosen = Mapping[Place, Choice]
"""A choice for some places; all others stay as they are."""


@dataclass(frozen=True)
class Thinning:
    """What an FF's neurons z [B, S, F] lose under several choices.

    `gone` [B or 1, F, choices], bool: which become `rest` [B or 1, F] (None: zero), from column
    `start` of the text on.
    """

    gone: Tensor
    rest: Tensor | None = None
    start: int = 0


class Offer(Protocol):
    """What a method offers for sublayers.

    `group`: offers of different groups that share a section of the plan exclude each other.
    `acts_on`: whether a choice changes the output of a sublayer, the neurons of an FF, or the whole
    model.
    """

    name: str
    group: str
    acts_on: Literal["output", "neurons", "model"]

    def choices(self, model: nn.Module, anatomy: Anatomy) -> list[Choice]:
        """Every alternative for a dense model; none where the method cannot do it."""
        ...

    def sections(self, choices: Sequence[Choice], anatomy: Anatomy) -> dict[str, dict[str, Any]]:
        """The plan's sections that these choices make."""
        ...


class SublayerOffer(Offer, Protocol):
    """One that acts on sublayers."""

    def prepare(
        self, replay: Replay, anatomy: Anatomy, choices: Sequence[Choice], progress: Progress
    ) -> Any:
        """What the other functions need of the dense model, replayed over calibration text."""
        ...


class OutputOffer(SublayerOffer, Protocol):
    """One that acts on the output."""

    def output(self, choice: Choice, entered: Tensor, left: Tensor, prepared: Any) -> Tensor:
        """What a sublayer's output [B, S, d] becomes, of its normalised input and output."""
        ...


class NeuronOffer(SublayerOffer, Protocol):
    """One that acts on neurons."""

    def thinning(
        self, choices: Sequence[Choice], z: Tensor, prompt: int, prepared: Any
    ) -> Thinning:
        """What an FF's neurons lose, in text whose first `prompt` columns are a prompt."""
        ...


@dataclass(frozen=True)
class Gain:
    """What a choice of the whole model does to the dense one by itself: the share of a decode step
    that it `saved`, and its `harm` in nats per token on the choosing text."""

    choice: Choice
    saved: float
    harm: float


@dataclass(frozen=True)
class Setting:
    """What an offer of the whole model looks at: text to fit and to choose on, the workload, and
    whether it is time that counts, not bytes."""

    text: Calibration
    windows: Windows
    workload: Workload
    by_time: bool


class WholeOffer(Offer, Protocol):
    """One of the whole model: its choices are all at the place WHOLE."""

    def look(
        self, model: nn.Module, setting: Setting, progress: Progress
    ) -> tuple[list[Gain], str]:
        """Those choices that pay, and why nothing is offered if none does."""
        ...

    def share_read(
        self,
        section: Mapping[str, Any],
        planned: Anatomy,
        workload: Workload,
        left: Sequence[float],
    ) -> float:
        """The share of a planned model's bytes that a step reads, what the section adds counted
        in, if these shares of tokens leave at its places."""
        ...


@cache
def offers() -> Mapping[str, Offer]:
    """Every offer by name."""
    package = importlib.import_module("skimp.finder.offers")
    found: dict[str, Offer] = {}
    for module in pkgutil.iter_modules(package.__path__):
        offer = importlib.import_module(f"{package.__name__}.{module.name}").OFFER
        found[offer.name] = offer
    return MappingProxyType(found)


def thinnable(model: nn.Module, anatomy: Anatomy) -> dict[int, FeedForward]:
    """The FFs whose neurons can be told apart, by layer; none in a mixture of experts."""
    try:
        return feed_forwards(model, anatomy)
    except PlanError:
        return {}


def plan_of(chosen: Chosen, anatomy: Anatomy) -> Plan:
    """The plan that choices make, not yet fitted."""
    plan = Plan.empty(anatomy)
    for name, offer in offers().items():
        own = sorted(choice for choice in chosen.values() if choice.offer == name)
        for section, data in (offer.sections(own, anatomy) if own else {}).items():
            plan = plan.with_section(section, data)
    return plan
