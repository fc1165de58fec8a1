"""`cost`: what plans leave out of weights and KV cache, and what that is worth in bytes read.

Nothing is measured: all of it follows from the shapes of what is left in. A plan worth nothing here
cannot be faster where bytes decide, and how much it is worth hangs on prompt length and batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from skimp.errors import RecipeError, WorkloadError
from skimp.measure.cost import byte_bound
from skimp.methods.registry import reduce
from skimp.recipes.outcome import Cell, Figure, Outcome, compare
from skimp.recipes.recipe import STRICT
from skimp.recipes.sources import Place
from skimp.recipes.stage import Stage
from skimp.workload import Workload

WEIGHTS = "weights left out"
CACHE = "KV cache left out"
BOUND = "byte bound"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """`workloads`: each gives a byte bound of decoding; `PROMPT+NEWxBATCH`."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    workloads: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Shapes:
    """Workloads for one stage; nothing is read, so there are no items."""

    workloads: tuple[Workload, ...]
    stage: Stage
    items: int = 0
    skipped: int = 0
    digest: str = ""

    @property
    def words(self) -> str:
        return f"worked out for {', '.join(map(str, self.workloads))}, not measured"

    def measure(self, plan: str) -> Outcome:
        """Shares of the dense model's bytes that are gone, and the bounds.

        With early exits no byte is sure to be left out; experts leave none out of memory.
        """
        dense = self.stage.anatomy
        planned = reduce(self.stage.fitted(plan), dense)
        cached = dense.kv_bytes_per_token
        gone = {
            WEIGHTS: 1 - planned.weight_bytes / dense.weight_bytes,
            CACHE: 1 - planned.kv_bytes_per_token / cached if cached else 0.0,
        }
        figures = {name: Figure(value, None, True) for name, value in gone.items()}
        for work in self.workloads:
            bound = byte_bound(dense, planned, work)
            figures[f"{BOUND}, {work}"] = Figure(bound, None, True, times=True)
        return Outcome(figures=figures)


class CostKind:
    """See the module."""

    name = "cost"
    settings = Costs
    places = ()
    titles: Mapping[str, str] = {}
    beside_dense = True

    def check(self, settings: Costs, place: Place) -> None:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        _workloads(settings, place)

    def prepare(self, settings: Costs, place: Place, stage: Stage) -> Shapes:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        return Shapes(_workloads(settings, place), stage)

    def compare(self, dense: Outcome | None, planned: Outcome, seed: int) -> dict[str, Cell]:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        return compare(dense, planned, seed)


def _workloads(settings: Costs, place: Place) -> tuple[Workload, ...]:
    try:
        return tuple(Workload.parse(text) for text in settings.workloads)
    except WorkloadError as error:
        raise RecipeError(f"{place.where}.workloads: {error}") from None


KIND = CostKind()
