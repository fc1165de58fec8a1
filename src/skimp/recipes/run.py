"""Runs a recipe: works out what there is to do, measures it plan by plan, keeps each result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from skimp.measure.shelf import Shelf, surroundings
from skimp.recipes.experiments import kinds
from skimp.recipes.experiments.base import Kind, Prepared
from skimp.recipes.outcome import Cell, Outcome
from skimp.recipes.recipe import DENSE, Experiment, Recipe
from skimp.recipes.sources import Place
from skimp.recipes.stage import Stage


@dataclass(frozen=True)
class Unit:
    """The smallest piece of work that is kept: one plan in one experiment.

    `kept` is its result from an earlier run, None if it is still to be measured. `repeats`: an
    experiment before this one measures the very same.
    """

    experiment: str
    plan: str
    key: dict[str, Any] = field(repr=False)
    kept: Outcome | None = field(repr=False)
    repeats: bool = False

    @property
    def missing(self) -> bool:
        """Whether it has to be measured."""
        return self.kept is None and not self.repeats


@dataclass(frozen=True)
class Job:
    """An experiment with its items at hand, and its units: dense first where it has a row."""

    experiment: Experiment
    kind: Kind
    prepared: Prepared
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Result:
    """What was found for an experiment: a table's cells and the outcomes, by plan."""

    job: Job
    outcomes: dict[str, Outcome]
    cells: dict[str, dict[str, Cell]]


def check(recipe: Recipe) -> None:
    """Raise a SkimpError for whatever can be seen to be missing before a model is loaded."""
    for experiment in recipe.experiments:
        kinds()[experiment.kind].check(experiment.settings, _place(recipe, experiment))


def jobs(recipe: Recipe, stage: Stage, shelf: Shelf[Outcome]) -> list[Job]:
    """What there is to do, with what an earlier run has left of it.

    Raises:
        RecipeError: data are missing, malformed or too long for the model.
    """
    common = {"surroundings": surroundings(), "model": stage.identity()}
    found: list[Job] = []
    for experiment in recipe.experiments:
        earlier = [unit.key for job in found for unit in job.units]
        found.append(_job(recipe, experiment, stage, shelf, common, earlier))
    return found


def run(
    work: list[Job],
    stage: Stage,
    shelf: Shelf[Outcome],
    *,
    begins: Callable[[Unit], None] = lambda unit: None,
    done: Callable[[Unit, Outcome], None] = lambda unit, outcome: None,
) -> list[Result]:
    """Measure every unit that is not kept, filing each as soon as it is finished.

    `begins` and `done` are told about the units that are measured, not about those kept. An
    interrupt loses the unit under way and nothing else.
    """
    found = []
    for job in work:
        outcomes: dict[str, Outcome] = {}
        for unit in job.units:
            outcome = unit.kept
            if outcome is None and unit.repeats:
                outcome = shelf.take(unit.key)
            if outcome is None:
                begins(unit)
                start = time.perf_counter()
                outcome = job.prepared.measure(unit.plan)
                outcome = replace(outcome, seconds=time.perf_counter() - start)
                shelf.put(unit.key, outcome)
                done(unit, outcome)
            outcomes[unit.plan] = outcome
        found.append(Result(job, outcomes, _cells(job, outcomes, stage.seed)))
    return found


def _cells(job: Job, outcomes: dict[str, Outcome], seed: int) -> dict[str, dict[str, Cell]]:
    dense = outcomes.get(DENSE)
    return {plan: job.kind.compare(dense, outcome, seed) for plan, outcome in outcomes.items()}


def _job(
    recipe: Recipe,
    experiment: Experiment,
    stage: Stage,
    shelf: Shelf[Outcome],
    common: dict[str, Any],
    earlier: list[dict[str, Any]],
) -> Job:
    kind = kinds()[experiment.kind]
    prepared = kind.prepare(experiment.settings, _place(recipe, experiment), stage)
    names = experiment.plans if kind.beside_dense else (DENSE, *experiment.plans)
    # Where a file lies does not matter, only the items taken from it.
    settings = {k: v for k, v in asdict(experiment.settings).items() if k not in kind.places}
    units = []
    for name in names:
        key = {
            **common,
            "kind": kind.name,
            "settings": settings,
            "items": prepared.digest,
            "plan": dict(recipe.plans.get(name, {})),
        }
        units.append(Unit(experiment.name, name, key, shelf.take(key), key in earlier))
    return Job(experiment, kind, prepared, tuple(units))


def _place(recipe: Recipe, experiment: Experiment) -> Place:
    return Place(recipe.data, f"{recipe.path.name}: experiments.{experiment.name}")
