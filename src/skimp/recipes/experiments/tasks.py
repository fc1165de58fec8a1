"""`tasks`: multiple choice and the like, scored by lm-evaluation-harness beside the dense model.

Experts act on answers only, and multiple choice writes none: :func:`evaluate` simulates them for a
model that carries such a plan (:mod:`skimp.measure.simulated`). Plans with early exits say beside
each score how many layers their tokens left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from skimp.measure.depths import Decide, leaving_of
from skimp.measure.items import build_requests
from skimp.measure.quality import Evaluation, TaskScores, evaluate, overall
from skimp.measure.quality import compare as compare_tasks
from skimp.measure.simulated import refuse_unsimulated
from skimp.measure.statistics import paired_difference
from skimp.measure.task_depths import TaskDepths, refuse_generated
from skimp.measure.tasks import load_tasks
from skimp.recipes.outcome import Cell, Figure, Outcome, compare
from skimp.recipes.recipe import STRICT
from skimp.recipes.sources import Count, Place
from skimp.recipes.stage import Stage

_MEAN = "mean"
LEFT_OUT = ", left out"
"""What the names of figures end in that say how many layers were left out."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """`tasks`: names in `folder` (task YAMLs), or without one names that the harness knows.

    `items`: the first so many of each task; None for all. `shots`: examples before each item; None
    as the task says. `decide`: with early exits, whether each scored token has a depth of its own
    (token), or its input one for all (input), as when one token answers it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    tasks: tuple[str, ...]
    folder: str | None = None
    items: Count | None = None
    shots: Annotated[int, Field(strict=True, ge=0)] | None = None
    decide: Decide = "token"


@dataclass(frozen=True)
class Scored:
    """Tasks for one stage."""

    specs: tuple[str, ...]
    limit: int | None
    names: tuple[str, ...]
    items: int
    digest: str
    stage: Stage
    shots: int | None = None
    decide: Decide = "token"
    skipped: int = 0

    @property
    def words(self) -> str:
        return f"items of {', '.join(self.names)}"

    def measure(self, plan: str) -> Outcome:
        """Every task's primary metric, item by item."""
        stage = self.stage
        with stage.applied(plan):
            leaving = None
            if stage.exits(plan):
                leaving = leaving_of(stage.model, stage.fitted(plan), self.decide)
            found = evaluate(
                stage.model,
                stage.tokenizer,
                self.specs,
                limit=self.limit,
                seed=stage.seed,
                shots=self.shots,
                leaving=leaving,
                progress=stage.progress,
            )
        details = {
            "metrics": {name: scores.metric for name, scores in found.tasks.items()},
            "items": {name: list(scores.items) for name, scores in found.tasks.items()},
            "way": found.way,
            "simulated": found.simulated,
        }
        if plan in stage.choices:
            details["drop"] = dict(stage.fitted(plan).sections["drop"])
        if found.depths:
            details["exits"] = {name: one.to_dict() for name, one in found.depths.items()}
            details["probe"] = list(stage.fitted(plan).sections["exit"]["probe"])
        scores = {name: scores.primary for name, scores in found.tasks.items()}
        return Outcome(scores, _left_out(found.depths), details)


def _left_out(depths: Mapping[str, TaskDepths]) -> dict[str, Figure]:
    """The share of layers left out in each task, and the unweighted mean of tasks."""
    found = {}
    for name, one in depths.items():
        spread = paired_difference([0.0] * len(one.items), one.items)
        found[f"{name}{LEFT_OUT}"] = Figure(one.left_out, spread.pair, True)
    if len(depths) > 1:
        mean = sum(one.left_out for one in depths.values()) / len(depths)
        found[f"{_MEAN}{LEFT_OUT}"] = Figure(mean, None, True)
    return found


class TasksKind:
    """See the module."""

    name = "tasks"
    settings = Tasks
    places = ("folder",)
    titles: Mapping[str, str] = {}
    beside_dense = False

    def check(self, settings: Tasks, place: Place) -> None:
        """See :class:`skimp.recipes.experiments.base.Kind`."""
        load_tasks(_specs(settings, place), shots=settings.shots)

    def prepare(self, settings: Tasks, place: Place, stage: Stage) -> Scored:
        """See :class:`skimp.recipes.experiments.base.Kind`.

        Raises:
            EvaluationError: a plan has experts or exits, which one of the tasks cannot be scored
                with.
        """
        specs = _specs(settings, place)
        found = load_tasks(specs, stage.seed, settings.shots)
        if any(map(stage.exits, stage.plans)):
            refuse_generated(found)
        thinning = next((n for n, plan in stage.plans.items() if "experts" in plan.sections), None)
        if thinning is not None:
            with stage.applied(thinning):
                refuse_unsimulated(stage.model, found)
        digest = sha256()
        count = 0
        for name, task in found.items():
            build_requests(name, task, settings.items, stage.seed)
            count += len({instance.doc_id for instance in task.instances})
            requests = [[i.doc_id, i.idx, i.request_type, i.args] for i in task.instances]
            items = list(task.doc_iterator(limit=settings.items))
            digest.update(json.dumps([name, requests, items], default=str).encode())
        return Scored(
            specs=specs,
            limit=settings.items,
            names=tuple(found),
            items=count,
            digest=digest.hexdigest(),
            stage=stage,
            shots=settings.shots,
            decide=settings.decide,
        )

    def compare(self, dense: Outcome | None, planned: Outcome, seed: int) -> dict[str, Cell]:
        """The tasks' cells, and the unweighted mean of those that are means of shares."""
        cells = compare(dense, planned, seed)
        shares = [name for name in planned.metrics if cells[name].share]
        if len(shares) < 2:
            return cells
        if dense is None or dense is planned:
            value = sum(cells[name].value for name in shares) / len(shares)
            return _with_mean(cells, Cell(value, True, True))
        pairs = compare_tasks(_evaluation(dense, shares), _evaluation(planned, shares), seed=seed)
        mean = overall(pairs)
        if mean is None:
            return cells
        cell = Cell(mean.planned, True, True, mean.dense, mean.difference, mean.interval)
        return _with_mean(cells, cell)


def _with_mean(cells: dict[str, Cell], mean: Cell) -> dict[str, Cell]:
    """The mean behind the scores, before what is said of exits."""
    left_out = {name: cell for name, cell in cells.items() if name.endswith(LEFT_OUT)}
    scores = {name: cell for name, cell in cells.items() if name not in left_out}
    return {**scores, _MEAN: mean, **left_out}


def _specs(settings: Tasks, place: Place) -> tuple[str, ...]:
    if settings.folder is None:
        return settings.tasks
    wanted = "task YAMLs of lm-evaluation-harness and the data they name"
    folder = place.find("folder", settings.folder, wanted, folder=True)
    return tuple(f"{folder}:{name}" for name in settings.tasks)


def _evaluation(outcome: Outcome, names: list[str]) -> Evaluation:
    """The outcome's tasks as `skimp.measure.quality` compares them."""
    metrics: dict[str, Any] = outcome.details["metrics"]
    items: dict[str, list[str]] = outcome.details["items"]
    scores = {
        name: TaskScores(
            name, metrics[name], {metrics[name]: outcome.metrics[name]}, tuple(items[name])
        )
        for name in names
    }
    return Evaluation(scores, None, 0, "", 0.0)


KIND = TasksKind()
