"""From a recipe's YAML to frozen data, with one sentence for whatever is wrong in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from skimp.errors import PlanError, RecipeError
from skimp.finder.choose import find_rule
from skimp.methods.registry import sections as read_sections
from skimp.plan import ModelRef, Plan, explain
from skimp.recipes import drops
from skimp.recipes.exits import FIT, ExitFit, parted
from skimp.recipes.experiments import kinds
from skimp.recipes.grid import expand
from skimp.recipes.recipe import (
    DENSE,
    Experiment,
    Paper,
    PaperFigures,
    Recipe,
    Sections,
    matching,
)

FORMAT = 1
_STRICT = ConfigDict(extra="forbid", strict=True)


class RecipeFile(BaseModel):
    """The envelope of a recipe file; kinds read their own settings from each experiment."""

    model_config = _STRICT
    recipe: Literal[1] = Field(description="version of the recipe format")
    title: str
    paper: dict[str, Any]
    model: str = Field(default="demo", description="what to run on unless --model says otherwise")
    data: str = Field(default=".", description="folder of the data, relative to the recipe")
    plans: dict[str, dict[str, Any]]
    experiments: list[dict[str, Any]] = Field(min_length=1)


class ExperimentFile(BaseModel):
    """What every experiment has, whatever its kind; the rest are the kind's settings."""

    model_config = ConfigDict(extra="allow", strict=True)
    kind: str
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    title: str | None = None
    plans: list[str] | None = Field(default=None, description="names or patterns; all if left out")
    paper: dict[str, Any] | None = None


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        RecipeError: no such file, not a recipe, or a field that is wrong; named.
    """
    where = f"{path.name}: "
    try:
        file = RecipeFile.model_validate(_parse(path))
    except ValidationError as error:
        raise RecipeError(explain(error, where)) from None
    plans = expand(file.plans, where)
    for name, sections in plans.items():
        _check_sections(sections, f"{where}plans.{name}.")
    found: list[Experiment] = []
    for index, entry in enumerate(file.experiments):
        made = _experiment(entry, list(plans), where, index)
        if made.name in [other.name for other in found]:
            raise RecipeError(f"{where}experiments: two are called {made.name}; rename one.")
        found.append(made)
    return Recipe(
        path=path,
        title=file.title,
        paper=_as(Paper, file.paper, f"{where}paper."),
        model=file.model,
        data=path.parent / Path(file.data).expanduser(),
        plans=plans,
        experiments=tuple(found),
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: there is no such recipe.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a recipe ({error}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path}: is not valid YAML ({reason}).") from None
    if not isinstance(data, dict) or "recipe" not in data:
        raise RecipeError(f"{path}: is not a recipe: the key 'recipe: {FORMAT}' is missing.")
    return data


def _as(kind: type, data: Mapping[str, Any], where: str) -> Any:
    """`data` as the frozen dataclass `kind`."""
    try:
        return TypeAdapter(kind).validate_python(dict(data))
    except ValidationError as error:
        raise RecipeError(explain(error, where)) from None


def _check_sections(sections: Sections, where: str) -> None:
    """Whether the methods know these sections; which model they fit is seen when there is one."""
    sections, fit = parted(sections)
    if fit is not None:
        _as(ExitFit, fit, f"{where}exit.{FIT}.")
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise RecipeError(f"{where}{name}: must be a section of a plan, with named settings.")
    try:
        sections, choice = drops.parted(sections)
        read_sections(Plan(ModelRef("any", 1, ""), sections))
    except PlanError as error:
        raise RecipeError(f"{where}{error}") from None
    if choice is None:
        return
    where += f"{drops.SECTION}.{drops.CHOOSE}."
    made: drops.DropChoice = _as(drops.DropChoice, choice, where)
    try:
        find_rule(made.rule)
    except PlanError as error:
        raise RecipeError(f"{where}{error}") from None


def _experiment(entry: Mapping[str, Any], plans: list[str], where: str, index: int) -> Experiment:
    try:
        file = ExperimentFile.model_validate(dict(entry))
    except ValidationError as error:
        raise RecipeError(explain(error, f"{where}experiments.{index}.")) from None
    where = f"{where}experiments.{file.name}."
    kind = kinds().get(file.kind)
    if kind is None:
        known = ", ".join(kinds())
        raise RecipeError(f"{where}kind: there is no {file.kind!r}; there are {known}.")
    chosen = plans
    if file.plans is not None:
        chosen = matching(file.plans, [DENSE, *plans], f"{where}plans: the recipe has no plan")
    paper = _as(PaperFigures, file.paper, f"{where}paper.") if file.paper is not None else None
    if paper is not None:
        _check_figures(paper, plans, kind.titles, f"{where}paper.figures")
    return Experiment(
        name=file.name,
        kind=file.kind,
        title=file.title or file.name,
        settings=_as(kind.settings, file.model_extra or {}, where),
        plans=tuple(name for name in chosen if name != DENSE),
        paper=paper,
    )


def _check_figures(
    paper: PaperFigures, plans: list[str], metrics: Mapping[str, str], where: str
) -> None:
    for metric, row in paper.figures.items():
        if metrics and metric not in metrics:
            raise RecipeError(
                f"{where}.{metric}: this kind does not measure it; it has {', '.join(metrics)}."
            )
        for plan in row:
            if plan not in (DENSE, *plans):
                raise RecipeError(f"{where}.{metric}.{plan}: the recipe has no such plan.")
