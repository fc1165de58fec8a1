"""Task quality of a model and what a plan does to it, item by item.

`evaluate` scores a live model (dense, or with a plan applied in place) on tasks of
lm-evaluation-harness; `compare` sets two such runs over the same items side by side, with paired
95% intervals (design law 7).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from skimp.errors import EvaluationError
from skimp.measure.depths import Leaving
from skimp.measure.items import answer, build_requests, digest, score
from skimp.measure.metrics import Kind, Metric
from skimp.measure.scorer import Way
from skimp.measure.shelf import Shelf
from skimp.measure.simulated import refuse_unsimulated
from skimp.measure.statistics import mcnemar, normal_quantile, t_quantile
from skimp.measure.task_depths import TaskDepths, of_task, refuse_generated
from skimp.measure.tasks import load_tasks
from skimp.progress import SILENT, Progress

SAVED = 1  # version of Evaluation.to_dict
NO_TOKENIZER = (
    "tokenizer: this model has none (random weights?), and tasks are text; evaluate a model that "
    "was loaded with its tokenizer."
)


@dataclass(frozen=True)
class TaskScores:
    """One task's per-item scores: `metrics[metric]` is the primary one, `items` are item hashes."""

    task: str
    metric: str
    metrics: dict[str, Metric]
    items: tuple[str, ...]

    @property
    def primary(self) -> Metric:
        return self.metrics[self.metric]

    @property
    def value(self) -> float:
        return self.primary.value


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on several tasks, by task name.

    `limit` and `seed` are what was asked for, `way` how the model was run (see
    :class:`skimp.measure.scorer.Scorer`), `seconds` the time the model took. `simulated`: experts
    were at work in simulated generation mode (see :mod:`skimp.measure.simulated`). `depths`: by
    task, where its tokens left the model; empty without early exits.
    """

    tasks: dict[str, TaskScores]
    limit: int | None
    seed: int
    way: str
    seconds: float
    simulated: bool = False
    depths: Mapping[str, TaskDepths] = field(default_factory=dict)

    @property
    def items(self) -> int:
        return sum(len(scores.items) for scores in self.tasks.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file; `from_dict` restores it."""
        return {"skimp_evaluation": SAVED, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Raises EvaluationError unless `data` is what `to_dict` gave."""
        try:
            if data["skimp_evaluation"] != SAVED:
                raise ValueError(f"version {data['skimp_evaluation']!r} is unknown")
            tasks = {name: _scores_from(scores) for name, scores in data["tasks"].items()}
            return cls(
                tasks,
                data["limit"],
                int(data["seed"]),
                str(data["way"]),
                float(data["seconds"]),
                bool(data.get("simulated", False)),
                {name: TaskDepths.from_dict(d) for name, d in data.get("depths", {}).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EvaluationError(
                f"saved evaluation: damaged or foreign ({type(error).__name__}: {error}); "
                "measure it again."
            ) from error


@dataclass(frozen=True)
class Keep:
    """Where each task is filed as soon as it is finished: `key` says which model and plan this is,
    and all else that scores hang on besides the task (see :mod:`skimp.measure.shelf`)."""

    shelf: Shelf[Evaluation]
    key: Mapping[str, Any]


def _scores_from(data: Mapping[str, Any]) -> TaskScores:
    metrics = {name: Metric.from_dict(metric) for name, metric in data["metrics"].items()}
    scores = TaskScores(data["task"], data["metric"], metrics, tuple(data["items"]))
    if scores.metric not in metrics or any(
        len(metric.scores) != len(scores.items) for metric in metrics.values()
    ):
        raise ValueError(f"task {scores.task} is incomplete")
    return scores


@dataclass(frozen=True)
class TaskComparison:
    """What a plan does to one task's primary metric.

    `dense` and `planned` are the metric's values, `difference` planned - dense, `interval` its 95%
    interval paired over `items` items. `standard_error` is the difference's, `p_value` McNemar's
    exact test (None unless scores are 0 or 1).
    """

    metric: str
    dense: float
    planned: float
    difference: float
    interval: tuple[float, float]
    items: int
    kind: Kind = "mean"
    higher_is_better: bool = True
    standard_error: float = math.nan
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "dense": self.dense,
            "planned": self.planned,
            "difference": self.difference,
            "interval": [bound if math.isfinite(bound) else None for bound in self.interval],
            "items": self.items,
        }


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    batch_tokens: int = 2048,
    way: Way = "auto",
    shots: int | None = None,
    leaving: Leaving | None = None,
    keep: Keep | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Score `model` on `tasks` (see :mod:`skimp.measure.tasks` for what may be named).

    Args:
        limit: the first so many items of each task; None for all.
        seed: of few-shot examples and of sampling.
        batch_tokens: tokens per forward pass.
        way: `phased` runs continuations through the KV cache, as decoding does: for plans that
            act while decoding only. Experts that a prompt chooses are simulated otherwise.
        shots: examples before each item; None as each task says.
        leaving: where tokens leave `model`, which carries that plan.
        keep: finished tasks that it has are taken from there, others are filed; None: neither.

    Raises:
        EvaluationError: see :func:`skimp.measure.tasks.load_tasks`; also for a missing tokenizer,
            a limit below 1, an item without choices, a task without a metric that can be paired,
            and experts or exits on a task that cannot be scored with them.
    """
    if tokenizer is None:
        raise EvaluationError(NO_TOKENIZER)
    if limit is not None and limit < 1:
        raise EvaluationError(f"limit: {limit} leaves no items; give at least 1, or none for all.")
    found = load_tasks(tasks, seed, shots)
    for name, task in found.items():
        build_requests(name, task, limit, seed)
    simulated = refuse_unsimulated(model, found)
    if leaving is not None:
        refuse_generated(found)
    from skimp.measure.harness import LiveModel

    live = LiveModel(
        model,
        tokenizer,
        batch_tokens=batch_tokens,
        way=way,
        seed=seed,
        leaving=leaving,
        progress=progress,
    )

    def measure(name: str, task: Any) -> Evaluation:
        start = time.perf_counter()
        answer(live, task.instances)
        seconds = time.perf_counter() - start
        scores = {name: TaskScores(name, *score(name, task, limit))}
        depths = {name: of_task(task, live.left, leaving.layers)} if leaving is not None else {}
        return Evaluation(scores, limit, seed, live.scorer.taken, seconds, simulated, depths)

    def kept(name: str, task: Any) -> Evaluation:
        if keep is None:
            return measure(name, task)
        asked = {"task": name, "asked": digest(task, limit), "seed": seed, "way": way}
        key = {**keep.key, **asked}
        part = keep.shelf.take(key)
        if part is None:
            part = measure(name, task)
            keep.shelf.put(key, part)
        else:
            progress.note(f"{name} was scored before and is taken from there.")
        return part

    return _joined([kept(name, task) for name, task in found.items()])


def _joined(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of one model on a task each, as one."""
    return replace(
        parts[0],
        tasks={name: scores for part in parts for name, scores in part.tasks.items()},
        depths={name: depths for part in parts for name, depths in part.depths.items()},
        seconds=sum(part.seconds for part in parts),
        way=next((part.way for part in parts if part.way != "auto"), "auto"),
    )


def compare(dense: Evaluation, planned: Evaluation, *, seed: int = 0) -> dict[str, TaskComparison]:
    """Compare two evaluations of the same items, task by task.

    Raises:
        EvaluationError: the two do not cover the same items of the same tasks.
    """
    if list(dense.tasks) != list(planned.tasks):
        raise EvaluationError(
            f"the dense model was scored on {', '.join(dense.tasks)} but the planned one on "
            f"{', '.join(planned.tasks)}; score both on the same tasks."
        )
    return {name: _compare(dense.tasks[name], planned.tasks[name], seed) for name in dense.tasks}


def overall(
    comparisons: Mapping[str, TaskComparison], *, level: float = 0.95
) -> TaskComparison | None:
    """Unweighted mean over the tasks whose metric is a mean between 0 and 1; None without any.

    Tasks count as fixed and items as sampled: the variance is the mean's of the tasks' paired
    variances, with Satterthwaite's degrees of freedom. `level` is that of the interval.
    """
    chosen = [c for c in comparisons.values() if c.kind == "mean" and c.higher_is_better]
    if not chosen:
        return None
    count = len(chosen)
    variances = [c.standard_error**2 for c in chosen]
    total = sum(variances)
    half = 0.0
    if total > 0:
        spread = sum(v * v / max(1, c.items - 1) for v, c in zip(variances, chosen, strict=True))
        half = t_quantile(0.5 + level / 2, total**2 / spread) * math.sqrt(total) / count
    difference = sum(c.difference for c in chosen) / count
    return TaskComparison(
        metric="mean",
        dense=sum(c.dense for c in chosen) / count,
        planned=sum(c.planned for c in chosen) / count,
        difference=difference,
        interval=(difference - half, difference + half),
        items=sum(c.items for c in chosen),
        standard_error=math.sqrt(total) / count,
    )


def _compare(dense: TaskScores, planned: TaskScores, seed: int) -> TaskComparison:
    before, after = dense.primary, planned.primary
    if dense.items != planned.items or dense.metric != planned.metric:
        raise EvaluationError(
            f"task {dense.task}: the two evaluations cover different items or metrics; score both "
            "models with the same limit and data."
        )
    interval = before.difference_to(after, seed)
    exact = before.kind == "mean" and not before.binary and len(dense.items) > 1
    quantile = t_quantile(0.975, len(dense.items) - 1) if exact else normal_quantile(0.975)
    return TaskComparison(
        metric=dense.metric,
        dense=before.value,
        planned=after.value,
        difference=after.value - before.value,
        interval=interval.pair,
        items=len(dense.items),
        kind=before.kind,
        higher_is_better=before.higher_is_better,
        standard_error=interval.width / (2 * quantile),
        p_value=mcnemar(before.scores, after.scores) if before.binary and after.binary else None,
    )
