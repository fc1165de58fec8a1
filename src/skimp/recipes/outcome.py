"""What was found for one plan in one experiment, item by item, and how it stands beside dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from skimp.measure.metrics import Metric


@dataclass(frozen=True)
class Figure:
    """A value that is itself a comparison with the dense model (KL, agreement), with its 95%
    interval where there is one. `times`: so many times the dense model's, such as a speedup."""

    value: float
    interval: tuple[float, float] | None
    higher_is_better: bool
    times: bool = False


@dataclass(frozen=True)
class Outcome:
    """One plan's result. `metrics` hold a score for each item, so that plans can be paired.

    `details` is plain data for the reader (answers, which metric a task has); `seconds` the time it
    took.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` restores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        """KeyError, TypeError or ValueError unless `data` is what `to_dict` gave."""
        metrics = {name: Metric.from_dict(metric) for name, metric in data["metrics"].items()}
        figures = {name: _figure(figure) for name, figure in data["figures"].items()}
        return cls(metrics, figures, dict(data["details"]), float(data["seconds"]))


def _figure(data: Mapping[str, Any]) -> Figure:
    pair = data["interval"]
    interval = None if pair is None else (float(pair[0]), float(pair[1]))
    better, times = bool(data["higher_is_better"]), bool(data["times"])
    return Figure(float(data["value"]), interval, better, times)


@dataclass(frozen=True)
class Cell:
    """One value of a table. `interval` (95%, paired) is the difference's to dense, or the value's
    own where that is a comparison already; `share`: a fraction, to be read as percent; `times`: as
    in :class:`Figure`."""

    value: float
    higher_is_better: bool
    share: bool = False
    dense: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    times: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(dense: Outcome | None, planned: Outcome, seed: int = 0) -> dict[str, Cell]:
    """Each metric of `planned` beside `dense`; without that, or for dense itself, alone."""
    found: dict[str, Cell] = {}
    for name, metric in planned.metrics.items():
        share = metric.kind == "mean" and all(0 <= score <= 1 for score in metric.scores)
        cell = Cell(metric.value, metric.higher_is_better, share)
        if dense is not None and dense is not planned:
            before = dense.metrics[name]
            interval = before.difference_to(metric, seed).pair
            change = metric.value - before.value
            cell = Cell(cell.value, cell.higher_is_better, share, before.value, change, interval)
        found[name] = cell
    for name, figure in planned.figures.items():
        share = figure.higher_is_better and 0 <= figure.value <= 1 and not figure.times
        found[name] = Cell(
            figure.value,
            figure.higher_is_better,
            share,
            interval=figure.interval,
            times=figure.times,
        )
    return found
