"""What a recipe says, as frozen plain data; :mod:`skimp.recipes.read` makes it from YAML."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ConfigDict

from skimp.errors import RecipeError

DENSE = "dense"
"""The untouched model: in every recipe, and what every plan stands beside."""

STRICT = ConfigDict(extra="forbid")
Sections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Paper:
    """Where the experiments come from."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    citation: str
    url: str | None = None


@dataclass(frozen=True)
class PaperFigures:
    """What the paper found: `figures[metric][plan]`, in this package's units (shares, not percent).

    `recalled`: written down from memory, not read in the paper; every table says so.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    model: str
    figures: dict[str, dict[str, float]]
    recalled: bool = False


@dataclass(frozen=True)
class Experiment:
    """One experiment of `kind`, with the settings of that kind, over some of the recipe's plans."""

    name: str
    kind: str
    title: str
    settings: Any
    plans: tuple[str, ...]
    paper: PaperFigures | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe read from `path`. `plans` are sections by plan name, without the dense model."""

    path: Path
    title: str
    paper: Paper
    model: str
    data: Path
    plans: Mapping[str, Sections]
    experiments: tuple[Experiment, ...] = field(default_factory=tuple)

    def only(self, experiments: Iterable[str]) -> Self:
        """The recipe with these experiments alone; RecipeError for a name that it has not."""
        known = [experiment.name for experiment in self.experiments]
        wanted = matching(experiments, known, f"--only: {self.path.name} has no experiment")
        return replace(self, experiments=tuple(e for e in self.experiments if e.name in wanted))

    def with_plans(self, plans: Iterable[str]) -> Self:
        """The recipe with these plans alone, beside the dense model; experiments without any go."""
        known = [DENSE, *self.plans]
        refusal = f"--plans: {self.path.name} has no plan"
        wanted = [name for name in matching(plans, known, refusal) if name != DENSE]
        narrowed = [
            replace(e, plans=tuple(name for name in e.plans if name in wanted))
            for e in self.experiments
        ]
        if wanted:
            narrowed = [experiment for experiment in narrowed if experiment.plans]
        if not narrowed:
            raise RecipeError(
                f"--plans: no experiment asked for runs {', '.join(wanted)}; see the experiments' "
                f"own `plans` in {self.path.name}."
            )
        return replace(
            self,
            plans={name: sections for name, sections in self.plans.items() if name in wanted},
            experiments=tuple(narrowed),
        )

    def limited(self, items: int) -> Self:
        """The recipe with at most so many items in each experiment (of each task)."""
        return replace(
            self,
            experiments=tuple(
                replace(
                    e, settings=replace(e.settings, items=min(items, e.settings.items or items))
                )
                if hasattr(e.settings, "items")
                else e
                for e in self.experiments
            ),
        )


def matching(patterns: Iterable[str], known: Iterable[str], refusal: str) -> list[str]:
    """The known names that any of the shell patterns fits, in their own order.

    Raises:
        RecipeError: a pattern fits none of them.
    """
    names, wanted = list(known), list(patterns)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(f"{refusal} {pattern!r}; it has {', '.join(names)}.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in wanted)]
