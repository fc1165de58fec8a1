"""What every choice saves at a workload: told by the plan that it alone would make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from skimp.finder.choices import WHOLE, Choice, Chosen, Gain, Place, offers, plan_of
from skimp.finder.knapsack import Values
from skimp.finder.prices import Prices
from skimp.finder.stage import by_place
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.workload import Workload


@dataclass(frozen=True)
class Menu:
    """All choices of a model and what they cost at a workload, by a list of prices.

    `whole`: what choices of the whole model come to, by choice.
    """

    anatomy: Anatomy
    workload: Workload
    prices: Prices
    choices: tuple[Choice, ...]
    whole: Mapping[Choice, Gain] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, workload: Workload, prices: Prices) -> "Menu":
        """Everything that methods offer for a dense model's sublayers."""
        anatomy = Anatomy.of(model)
        found = [
            choice
            for offer in offers().values()
            if offer.acts_on != "model"
            for choice in offer.choices(model, anatomy)
        ]
        return cls(anatomy, workload, prices, tuple(found))

    def of_groups(self, groups: Sequence[str]) -> "Menu":
        """The menu with the choices of these groups alone, and those of the whole model."""
        kept = tuple(c for c in self.choices if offers()[c.offer].group in groups)
        return replace(self, choices=kept)

    def with_whole(self, gains: Sequence[Gain]) -> "Menu":
        """The menu with choices of the whole model."""
        return replace(self, whole={gain.choice: gain for gain in gains})

    @cached_property
    def dense(self) -> float:
        """What a decode step of the dense model costs, in the prices' unit."""
        return self.prices.step(self.anatomy, self.workload)

    @cached_property
    def savings(self) -> Values:
        """What each choice alone saves of a decode step, in the prices' unit."""
        found: dict[Place, dict[Choice | None, float]] = {}
        for place, choices in by_place((*self.whole, *self.choices)).items():
            found[place] = {None: 0.0}
            for choice in choices:
                found[place][choice] = self.dense - self.cost({place: choice})
        return found

    def to_save(self, speed: float) -> float:
        """What of a dense decode step has to be saved to be so many times as fast."""
        return self.dense * (1 - 1 / speed)

    def cost(self, chosen: Chosen) -> float:
        """What a decode step of the plan that choices make costs."""
        planned = reduce(plan_of(chosen, self.anatomy), self.anatomy)
        found = self.prices.step(planned, self.workload)
        whole = chosen.get(WHOLE)
        return found if whole is None else found - self.dense * self.whole[whole].saved

    def speedup(self, chosen: Chosen) -> float:
        """The foretold decode speedup."""
        return self.dense / self.cost(chosen)
