"""Accuracy on tasks as a budget: one half of the items has a say in the choice, the other proves.

An item's half is told by the hash of its content, so it is the same in every run, for every plan
and however many items are scored. Plans are compared with the dense model item by item.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from torch import nn

from skimp.errors import SkimpError
from skimp.finder.budget import Limit
from skimp.finder.proof import LEVEL, Verdict
from skimp.finder.state import State
from skimp.measure.depths import leaving_of
from skimp.measure.metrics import Metric
from skimp.measure.quality import Evaluation, TaskScores, compare, evaluate, overall
from skimp.methods.apply import apply
from skimp.plan import Plan
from skimp.progress import SILENT, Progress

Half = Literal["choosing", "proving"]
_LEAST = 4  # items of each task in a half


@dataclass(frozen=True)
class Scored:
    """How a plan's mean accuracy differs from the dense model's on each half of the items."""

    choosing: Verdict
    proving: Verdict

    def to_dict(self) -> dict[str, Any]:
        return {
            name: {
                "difference": each.seen,
                "bound": each.bound,
                "holds": each.holds,
                "items": each.tokens,
            }
            for name, each in (("choosing", self.choosing), ("proving", self.proving))
        }


@dataclass(frozen=True)
class Accuracies:
    """Plans that are tested, by number, in this order; it owes nothing to the proving half."""

    limit: Limit
    order: tuple[int, ...]
    scored: Mapping[int, Scored]


def found_tasks(limit: Limit, include: Path | None) -> tuple[str, ...]:
    """A limit's tasks as :func:`skimp.measure.tasks.load_tasks` takes them.

    `include`: a folder of task YAMLs where bare names are looked for first.

    Raises:
        EvaluationError: the folder has no tasks.
    """
    if include is None:
        return limit.tasks
    from skimp.measure.task_files import read_place
    from skimp.measure.tasks import require_harness

    require_harness()
    known = read_place(include).names
    return tuple(f"{include}:{name}" if name in known else name for name in limit.tasks)


class Scorer:
    """Scores plans beside the dense model, each once; what was scored is remembered.

    Args:
        items: of each task, at most.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        limit: Limit,
        tasks: Sequence[str],
        state: State,
        *,
        items: int | None = None,
        seed: int = 0,
        progress: Progress = SILENT,
    ) -> None:
        self.limit = limit
        self._model, self._tokenizer, self._tasks = model, tokenizer, list(tasks)
        self._state, self._items, self._seed, self._progress = state, items, seed, progress
        words = json.dumps([self._tasks, items, seed])
        self._key = hashlib.sha256(words.encode()).hexdigest()[:12]

    def __call__(self, file: str) -> Scored:
        """Of a fitted plan, by its name in the search's folder."""
        dense = self._scores("dense", lambda: None)
        planned = self._scores(file, lambda: Plan.read(self._state.plan(file)))
        return Scored(
            judge_half(self.limit, dense, planned, "choosing"),
            judge_half(self.limit, dense, planned, "proving"),
        )

    def _scores(self, name: str, plan: Callable[[], Plan | None]) -> Evaluation:
        found = self._state.remember(
            f"scored-{self._key}-{name}", lambda: self._evaluate(plan()).to_dict()
        )
        return Evaluation.from_dict(found)

    def _evaluate(self, plan: Plan | None) -> Evaluation:
        with apply(self._model, plan) if plan is not None else nullcontext():
            return evaluate(
                self._model,
                self._tokenizer,
                self._tasks,
                limit=self._items,
                seed=self._seed,
                leaving=leaving_of(self._model, plan),
                progress=self._progress,
            )


def half_of(item: str) -> Half:
    """The half of an item, by its hash."""
    return "choosing" if int(item[-1], 16) % 2 else "proving"


def judge_half(limit: Limit, dense: Evaluation, planned: Evaluation, half: Half) -> Verdict:
    """Judge the mean difference of accuracy by one half; tokens are items, documents tasks here.

    Raises:
        SkimpError: a task has no accuracy, or too few items.
    """
    _check(dense)
    compared = compare(_part(dense, half), _part(planned, half))
    found = overall(compared, level=2 * LEVEL - 1)
    assert found is not None
    bound = found.interval[0]
    room, below = found.difference - limit.value, found.difference - bound
    lacking = None
    if bound < limit.value and room > 0 and isfinite(below):
        lacking = int(found.items * ((below / room) ** 2 - 1)) + 1
    holds = bound >= limit.value
    return Verdict(holds, found.difference, bound, found.items, len(compared), lacking)


def score_near(
    entries: Sequence[dict[str, Any]], scorer: Scorer, late: Callable[[], bool] = lambda: False
) -> Accuracies:
    """Score those of a search's plans that are near the budget, and note it in their entries."""
    found = sorted(entries, key=lambda entry: (entry["joint"], entry["number"]))
    by_number = {entry["number"]: entry for entry in found}
    scored: dict[int, Scored] = {}

    def score(number: int) -> Scored:
        scored[number] = scorer(by_number[number]["file"])
        by_number[number]["accuracy"] = scored[number].to_dict()
        return scored[number]

    order = order_of(list(by_number), score, late)
    return Accuracies(scorer.limit, order, scored)


def would_pass(entry: Mapping[str, Any]) -> bool:
    """Whether a plan was scored, and the choosing half would let it pass."""
    return entry["accuracy"] is not None and entry["accuracy"]["choosing"]["holds"]


def order_of(
    numbers: Sequence[int], score: Callable[[int], Scored], late: Callable[[], bool]
) -> tuple[int, ...]:
    """Plans to be tested, of `numbers` from the mildest on: the fastest that the choosing half
    would pass is looked for by halving, and of what was scored on the way all that it would pass
    are tested, and the one before the fastest, should luck leave that one alone. If it would pass
    none, the mildest that was scored is."""
    low, high = 0, len(numbers)
    passes: dict[int, bool] = {}
    while low < high and not late():
        middle = (low + high) // 2
        passes[middle] = score(numbers[middle]).choosing.holds
        low, high = (middle + 1, high) if passes[middle] else (low, middle)
    before = low - 2
    if before >= 0 and before not in passes and not late():
        passes[before] = score(numbers[before]).choosing.holds
    tested = [place for place, holds in sorted(passes.items()) if holds] or sorted(passes)[:1]
    return tuple(numbers[place] for place in tested)


def _part(evaluation: Evaluation, half: Half) -> Evaluation:
    tasks = {name: _half(scores, half) for name, scores in evaluation.tasks.items()}
    return replace(evaluation, tasks=tasks)


def _half(scores: TaskScores, half: Half) -> TaskScores:
    rows = [row for row, item in enumerate(scores.items) if half_of(item) == half]
    metrics = {name: _rows(metric, rows) for name, metric in scores.metrics.items()}
    items = tuple(scores.items[row] for row in rows)
    return TaskScores(scores.task, scores.metric, metrics, items)


def _rows(metric: Metric, rows: Sequence[int]) -> Metric:
    scores, weights = ([each[row] for row in rows] for each in (metric.scores, metric.weights))
    return replace(metric, scores=tuple(scores), weights=tuple(weights))


def _check(evaluation: Evaluation) -> None:
    for name, scores in evaluation.tasks.items():
        if scores.primary.kind != "mean" or not scores.primary.higher_is_better:
            raise SkimpError(
                f"--budget: task {name} has no accuracy, its metric being {scores.metric}; name "
                "another."
            )
        halves = [half_of(item) for item in scores.items]
        if min(halves.count("choosing"), halves.count("proving")) < _LEAST:
            raise SkimpError(
                f"--budget: task {name} has only {len(halves)} items, and half of them must prove "
                "the accuracy; score more."
            )
