"""Axes: round ticks, and a ceiling that keeps a few giants from flattening everything else."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover [low, high], at most `most` + 1 of them (1, 2 or 5 × 10^n apart)."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    if span < 1e-290:  # too near the smallest floats for any round step
        return [low, high]
    raw = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)
    if step <= 0 or low + step == low:
        return [low, high]
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [
        round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)
    ]


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high` with its ticks; values beyond it are cut at its ends."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @property
    def step(self) -> float:
        """Distance of two ticks."""
        return self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(self.high - self.low)

    def at(self, value: float) -> float:
        """Position of `value` as a fraction of the axis, within 0 and 1."""
        if self.high == self.low:
            return 0.0
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def cuts(self, value: float) -> bool:
        """True when `value` lies beyond the axis, so that its mark is cut."""
        slack = 1e-9 * (abs(self.low) + abs(self.high))
        return value > self.high + slack or value < self.low - slack


def axis(values: Iterable[float | None], most: int = 5, *, trim: bool = False) -> Axis:
    """A linear axis through 0 and all finite `values`.

    With `trim`, the few values (at most 15%) that stand more than three times above the rest are
    left beyond the axis: first and last layers are often a hundred times more harmful than others.
    """
    finite = sorted(v for v in values if v is not None and math.isfinite(v))
    if not finite or (finite[0] == 0 and finite[-1] == 0):
        return Axis(0.0, 1.0, (0.0, 1.0))
    low, high = min(0.0, finite[0]), max(0.0, finite[-1])
    if trim and high > 0:
        typical = finite[min(len(finite) - 1, math.floor(0.85 * len(finite)))]
        if typical > 0 and high > 3 * typical:
            high = max(value for value in finite if value <= 3 * typical)
    if trim and low < 0:
        typical = -finite[math.floor(0.15 * len(finite))]
        low = max(low, -3 * max(typical, high / 3))
    found = ticks(low, high, most)
    return Axis(min(low, found[0]), max(high, found[-1]), tuple(found))
