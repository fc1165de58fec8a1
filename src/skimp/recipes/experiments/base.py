"""What every kind of experiment gives: its settings, its items, and a plan's result on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from skimp.recipes.outcome import Cell, Outcome
from skimp.recipes.sources import Place
from skimp.recipes.stage import Stage


class Prepared(Protocol):
    """An experiment with its items at hand.

    `digest` is of all that is read; `items` are what is counted (0: nothing is), `skipped` what was
    too long, `words` says what one item is.
    """

    @property
    def digest(self) -> str: ...
    @property
    def items(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def words(self) -> str: ...

    def measure(self, plan: str) -> Outcome:
        """Measure one plan (or dense), the same way every time."""
        ...


class Kind(Protocol):
    """A kind of experiment, which joins by standing in this folder and exporting `KIND`.

    `settings` is a frozen dataclass that pydantic reads from the recipe; --limit lowers its field
    `items`, if it has one.
    `places` are those of its fields that only say where data lie. `titles` are the metrics' names
    in tables, empty where the data decide on the metrics. `beside_dense`: a plan's result compares
    it with the dense model already, which therefore has no row of its own.
    """

    name: str
    settings: type
    places: tuple[str, ...]
    titles: Mapping[str, str]
    beside_dense: bool

    def check(self, settings: Any, place: Place) -> None:
        """Raise a SkimpError for whatever is missing, before a model is loaded."""
        ...

    def prepare(self, settings: Any, place: Place, stage: Stage) -> Prepared:
        """Read the items, as the stage's tokenizer sees them."""
        ...

    def compare(self, dense: Outcome | None, planned: Outcome, seed: int) -> dict[str, Cell]:
        """A table's cells for one plan, paired with dense item by item."""
        ...
