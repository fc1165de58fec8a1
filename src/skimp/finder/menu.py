"""What every choice saves at a workload: told by the plan that it alone would make."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from skimp.finder.choices import Choice, Chosen, offers, plan_of
from skimp.finder.knapsack import Values
from skimp.finder.prices import Prices
from skimp.finder.stage import by_place
from skimp.methods.in_order import Place
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.workload import Workload


@dataclass(frozen=True)
class Menu:
    """All choices of a model and what they cost at a workload, by a list of prices.

    Choices of the groups that are not in `groups` are left out: they exclude these.
    """

    anatomy: Anatomy
    workload: Workload
    prices: Prices
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, model: nn.Module, workload: Workload, prices: Prices) -> "Menu":
        """Everything that methods offer for a dense model."""
        anatomy = Anatomy.of(model)
        found = [choice for offer in offers().values() for choice in offer.choices(model, anatomy)]
        return cls(anatomy, workload, prices, tuple(found))

    def of_groups(self, groups: Sequence[str]) -> "Menu":
        """The menu with the choices of these groups alone."""
        kept = tuple(c for c in self.choices if offers()[c.offer].group in groups)
        return Menu(self.anatomy, self.workload, self.prices, kept)

    @cached_property
    def dense(self) -> float:
        """What a decode step of the dense model costs, in the prices' unit."""
        return self.prices.step(self.anatomy, self.workload)

    @cached_property
    def savings(self) -> Values:
        """What each choice alone saves of a decode step, in the prices' unit."""
        found: dict[Place, dict[Choice | None, float]] = {}
        for place, choices in by_place(self.choices).items():
            found[place] = {None: 0.0}
            for choice in choices:
                found[place][choice] = self.dense - self.cost({place: choice})
        return found

    def cost(self, chosen: Chosen) -> float:
        """What a decode step of the plan that choices make costs."""
        return self.prices.step(reduce(plan_of(chosen, self.anatomy), self.anatomy), self.workload)

    def speedup(self, chosen: Chosen) -> float:
        """The foretold decode speedup."""
        return self.dense / self.cost(chosen)
