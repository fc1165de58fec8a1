"""What can be done with each sublayer, as data: the alternatives that the search picks from.

A method takes part by an :class:`Offer`: a file of :mod:`skimp.finder.offers` that exports one as
`OFFER`. An offer says which alternatives there are, what each does to its sublayer, and how chosen
ones are written into a plan. What they cost is told by the plan that they would make.
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
from skimp.errors import PlanError
from skimp.methods.in_order import Place
from skimp.models.anatomy import Anatomy, Kind
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.plan import Plan
from skimp.progress import Progress


@dataclass(frozen=True, order=True)
class Choice:
    """An alternative to a sublayer as it is: `offer` says whose, `level` how far it goes."""

    layer: int
    kind: Kind
    offer: str
    level: str

    @property
    def place(self) -> Place:
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
    `acts_on`: whether a choice changes the output of a sublayer, or the neurons of an FF.
    """

    name: str
    group: str
    acts_on: Literal["output", "neurons"]

    def choices(self, model: nn.Module, anatomy: Anatomy) -> list[Choice]:
        """Every alternative for a dense model; none where the method cannot do it."""
        ...

    def prepare(
        self, replay: Replay, anatomy: Anatomy, choices: Sequence[Choice], progress: Progress
    ) -> Any:
        """What the other functions need of the dense model, replayed over calibration text."""
        ...

    def sections(self, choices: Sequence[Choice], anatomy: Anatomy) -> dict[str, dict[str, Any]]:
        """The plan's sections that these choices make."""
        ...


class OutputOffer(Offer, Protocol):
    """One that acts on the output."""

    def output(self, choice: Choice, entered: Tensor, left: Tensor, prepared: Any) -> Tensor:
        """What a sublayer's output [B, S, d] becomes, of its normalised input and output."""
        ...


class NeuronOffer(Offer, Protocol):
    """One that acts on neurons."""

    def thinning(
        self, choices: Sequence[Choice], z: Tensor, prompt: int, prepared: Any
    ) -> Thinning:
        """What an FF's neurons lose, in text whose first `prompt` columns are a prompt."""
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
