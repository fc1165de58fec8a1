"""A task metric kept item by item, so that two runs can be paired."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from skimp.errors import EvaluationError
from skimp.measure.statistics import (
    Floats,
    Interval,
    bootstrap,
    paired_difference,
    paired_proportions,
)

Kind = Literal["mean", "perplexity", "weighted_perplexity", "bits"]


def _mean(scores: Floats, weights: Floats) -> Floats:
    return scores.mean(axis=-1)


def _perplexity(scores: Floats, weights: Floats) -> Floats:
    return np.exp(-scores.mean(axis=-1))


def _weighted_perplexity(scores: Floats, weights: Floats) -> Floats:
    return np.exp(-scores.sum(axis=-1) / weights.sum(axis=-1))


def _bits(scores: Floats, weights: Floats) -> Floats:
    return -scores.sum(axis=-1) / weights.sum(axis=-1) / math.log(2)


FORMULAS: dict[Kind, Callable[[Floats, Floats], Floats]] = {
    "mean": _mean,
    "perplexity": _perplexity,
    "weighted_perplexity": _weighted_perplexity,
    "bits": _bits,
}


@dataclass(frozen=True)
class Metric:
    """Per-item `scores` and how they make one figure.

    For perplexities a score is an item's log-likelihood in nats and its weight the words or bytes
    it covers; otherwise weights are 1.
    """

    kind: Kind
    higher_is_better: bool
    scores: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def value(self) -> float:
        return float(FORMULAS[self.kind](np.array(self.scores), np.array(self.weights)))

    @property
    def binary(self) -> bool:
        return self.kind == "mean" and set(self.scores) <= {0.0, 1.0}

    def difference_to(self, after: Metric, seed: int = 0) -> Interval:
        """`after.value - self.value` over the same items, with its paired 95% interval."""
        if self.binary and after.binary:
            return paired_proportions(self.scores, after.scores)
        if self.kind == "mean":
            return paired_difference(self.scores, after.scores)
        formula = FORMULAS[self.kind]

        def difference(before: Floats, later: Floats, weights: Floats) -> Floats:
            return formula(later, weights) - formula(before, weights)

        return bootstrap(difference, self.scores, after.scores, self.weights, seed=seed)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Metric:
        """Restore `dataclasses.asdict`; ValueError, KeyError or TypeError if it is not that."""
        scores = tuple(float(score) for score in data["scores"])
        weights = tuple(float(weight) for weight in data["weights"])
        if data["kind"] not in FORMULAS or len(scores) != len(weights) or not scores:
            raise ValueError(f"metric of kind {data['kind']!r} with {len(scores)} scores")
        return cls(data["kind"], bool(data["higher_is_better"]), scores, weights)


def metric_of(
    values: Sequence[Any], aggregate: Callable[[Sequence[Any]], Any], higher_is_better: bool
) -> Metric | None:
    """A metric from the harness's per-item values, or None if it has no per-item meaning (F1...).

    The kind is the formula that reproduces the task's own aggregate, whatever it is called.
    """
    table = np.array([np.atleast_1d(_number(value)) for value in values], dtype=np.float64)
    if table.ndim != 2 or table.shape[1] not in (1, 2) or not np.isfinite(table).all():
        return None
    try:
        target = float(aggregate(list(values)))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    kinds: tuple[Kind, ...] = ("mean", "perplexity")
    if table.shape[1] == 2:
        kinds = ("weighted_perplexity", "bits")
    weights = table[:, 1] if table.shape[1] == 2 else np.ones(len(table))
    for kind in kinds:
        if np.isclose(float(FORMULAS[kind](table[:, 0], weights)), target, rtol=1e-6, atol=1e-9):
            return Metric(
                kind, higher_is_better, tuple(table[:, 0].tolist()), tuple(weights.tolist())
            )
    return None


def _number(value: Any) -> Any:
    """Numbers and pairs of numbers; anything else as NaN, which no metric keeps."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    if len(parts) <= 2 and all(isinstance(p, (int, float, np.number, np.bool_)) for p in parts):
        return [float(part) for part in parts]
    return [math.nan]


def metrics_of(
    task: Any, name: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[str, dict[str, Metric]]:
    """Primary metric's key and all usable metrics of a task.

    `rows` holds, per answer filter, one mapping of metric to value per item. Primary is the first
    metric of the task's list that is better when higher, else the first usable one.

    Raises:
        EvaluationError: no metric has a value for every item.
    """
    better, aggregates = task.higher_is_better(), task.aggregation()
    found: dict[str, Metric] = {}
    for answers, items in rows.items():
        for metric in items[0]:
            key = metric if answers == "none" else f"{metric},{answers}"
            values = [item[metric] for item in items if metric in item]
            if len(values) == len(items):
                made = metric_of(values, aggregates.get(metric, np.mean), better.get(metric, True))
                if made is not None:
                    found[key] = made
    if not found:
        raise EvaluationError(
            f"task {name}: none of its metrics ({', '.join(map(str, better))}) has a value of its "
            "own for every item; use a task with acc, exact_match or a perplexity."
        )
    order = list(better)
    ranked = sorted(found, key=lambda key: _rank(key, order))
    return next((key for key in ranked if found[key].higher_is_better), ranked[0]), found


def _rank(key: str, order: Sequence[str]) -> int:
    metric = key.partition(",")[0]
    return order.index(metric) if metric in order else len(order)
