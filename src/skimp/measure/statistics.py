"""Paired statistics for before-and-after figures, in numpy alone.

Everything here compares two runs over the *same* items (design law 7), so every interval is built
from per-item differences: what the items have in common cancels. Intervals are two-sided.

Sources: Efron (1987) for the BCa bootstrap; McNemar (1947) in its exact binomial form; Bonett and
Price (2012) for a difference of paired proportions; Hettmansperger and Sheather (1986) for the
median.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A point estimate with its two-sided confidence interval `low <= high`."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def pair(self) -> tuple[float, float]:
        return (self.low, self.high)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def paired_difference(before: ArrayLike, after: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of `after - before` over items with Student's t interval.

    Both are [items]. Fewer than two items say nothing about spread: the interval is infinite.
    """
    difference = _paired(before, after)[1] - _paired(before, after)[0]
    return clustered_mean(difference, np.ones_like(difference), level)


def clustered_mean(totals: ArrayLike, counts: ArrayLike, level: float = 0.95) -> Interval:
    """`sum(totals) / sum(counts)` where items are whole documents of unequal size.

    The spread is the jackknife's over documents, so tokens of one document, which resemble each
    other, are not taken for independent. With equal counts this is exactly the t interval of the
    mean.
    """
    sums, sizes = _paired(totals, counts)
    number, whole, size = len(sums), float(sums.sum()), float(sizes.sum())
    if sizes.min() < 0 or size <= sizes.max() * (number > 1):
        raise ValueError("counts must not be negative, and more than one must be above 0")
    ratio = whole / size
    if number < 2:
        return Interval(ratio, -math.inf, math.inf, level)
    # What leaving one document out adds to the ratio, written so that equal items give exactly 0.
    moved = (sums - ratio * sizes) / (size - sizes)
    moved -= moved.mean()
    error = math.sqrt(float(moved @ moved) * (number - 1) / number)
    half = t_quantile(0.5 + level / 2, number - 1) * error
    return Interval(ratio, ratio - half, ratio + half, level)


def paired_proportions(before: ArrayLike, after: ArrayLike, level: float = 0.95) -> Interval:
    """Difference of two proportions over the same items of 0 and 1 (Bonett and Price 2012).

    One pseudo-item is added to each kind of flip. Unlike the t interval this does not collapse to
    a point when no item happened to flip: 50 items without a flip do not prove that none would.
    """
    first, second = _paired(before, after)
    lost, gained, number = _discordant(first, second)
    down, up = (lost + 1) / (number + 2), (gained + 1) / (number + 2)
    error = math.sqrt((down + up - (down - up) ** 2) / (number + 2))
    half = normal_quantile(0.5 + level / 2) * error
    estimate = (gained - lost) / number
    low, high = up - down - half, up - down + half
    # With one or two items the shift towards 0 can step over the estimate itself.
    return Interval(estimate, max(-1.0, min(low, estimate)), min(1.0, max(high, estimate)), level)


def mcnemar(before: ArrayLike, after: ArrayLike) -> float:
    """Exact two-sided p-value that 0/1 flips in both directions are equally likely."""
    lost, gained, _ = _discordant(*_paired(before, after))
    flips, rarer = lost + gained, min(lost, gained)
    if lost == gained:
        return 1.0
    # Summed in logarithms: 2**-flips underflows beyond a thousand flips.
    logs = [_log_choose(flips, k) - flips * math.log(2) for k in range(rarer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log) for log in logs))


def bootstrap(
    statistic: Statistic,
    *samples: ArrayLike,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> Interval:
    """Interval of `statistic(*samples)`, resampling items jointly over all samples.

    `samples` are [items] arrays of one length; `statistic` takes arrays [..., items] and reduces
    the last axis. `bca` corrects bias and skew but needs a smooth statistic: use `percentile` for
    medians, whose jackknife is inconsistent.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    number = len(arrays[0])
    if any(array.ndim != 1 or len(array) != number for array in arrays) or number == 0:
        raise ValueError("samples must be non-empty and of one length")
    estimate = float(statistic(*arrays))
    draws = _resampled(statistic, arrays, resamples, seed)
    tail = (1 - level) / 2
    probabilities = (tail, 1 - tail)
    if method == "bca":
        probabilities = _bca(statistic, arrays, draws, estimate, probabilities)
    low, high = (float(value) for value in np.quantile(draws, probabilities))
    return Interval(estimate, min(low, estimate), max(high, estimate), level)


def ratio_interval(
    dense_times: ArrayLike,
    planned_times: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Speedup `median(dense) / median(planned)` with its paired percentile bootstrap.

    Times are in seconds, [rounds] each, where entry i of both was measured in the same round. Where
    the machine drifts from round to round the interval is wider than 95% needs; then
    :func:`round_ratio_interval` says more.
    """
    dense, planned = _times(dense_times, planned_times)
    return bootstrap(_ratio_of_medians, dense, planned, level=level, resamples=resamples, seed=seed)


def round_ratio_interval(
    dense_times: ArrayLike, planned_times: ArrayLike, level: float = 0.95
) -> Interval:
    """Median over rounds of the speedup within a round: what a round shares (drift) cancels."""
    dense, planned = _times(dense_times, planned_times)
    return median_interval(dense / planned, level)


def median_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Median with the interpolated order-statistic interval of Hettmansperger and Sheather.

    Distribution-free. Below six values no interval reaches 95%: the range is given and `level`
    says what it is worth.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    number = len(ordered)
    if number == 0:
        raise ValueError("values must not be empty")
    middle = float(np.median(ordered))
    reached = _order_coverage(number, 1)
    if reached <= level:
        return Interval(middle, float(ordered[0]), float(ordered[-1]), min(level, reached))
    depth = 1
    while depth + 1 <= number // 2 and _order_coverage(number, depth + 1) >= level:
        depth += 1
    outer, inner = _order_coverage(number, depth), _order_coverage(number, depth + 1)
    share = (outer - level) / (outer - inner)
    weight = (number - depth) * share / (depth + (number - 2 * depth) * share)
    low = (1 - weight) * ordered[depth - 1] + weight * ordered[depth]
    high = (1 - weight) * ordered[number - depth] + weight * ordered[number - depth - 1]
    return Interval(middle, float(low), float(high), level)


def normal_quantile(probability: float) -> float:
    """Inverse of the standard normal distribution function."""
    return _NORMAL.inv_cdf(probability)


@cache
def t_quantile(probability: float, freedom: float) -> float:
    """Inverse of Student's t distribution function, by bisection to about 1e-12 relative."""
    if not 0 < probability < 1 or freedom <= 0:
        raise ValueError("probability must lie between 0 and 1 and freedom be positive")
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while _t_above(high, freedom) > 1 - probability:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        if _t_above(middle, freedom) > 1 - probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != two.shape or len(one) == 0:
        raise ValueError(
            f"paired samples must be two lists of one length: {one.shape}, {two.shape}"
        )
    return one, two


def _times(dense: ArrayLike, planned: ArrayLike) -> tuple[Floats, Floats]:
    first, second = _paired(dense, planned)
    if min(first.min(), second.min()) <= 0:
        raise ValueError("times must be greater than 0")
    return first, second


def _discordant(before: Floats, after: Floats) -> tuple[int, int, int]:
    """Items that went from 1 to 0, from 0 to 1, and all of them."""
    if not (np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all()):
        raise ValueError("items must be 0 or 1")
    return int((before > after).sum()), int((after > before).sum()), len(before)


def _ratio_of_medians(dense: Floats, planned: Floats) -> Floats:
    return np.median(dense, axis=-1) / np.median(planned, axis=-1)


def _resampled(statistic: Statistic, arrays: list[Floats], resamples: int, seed: int) -> Floats:
    """Statistic of `resamples` draws with replacement, in blocks of about 8 MB."""
    generator, number = np.random.default_rng(seed), len(arrays[0])
    block = max(1, 2**20 // number)
    parts = []
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), number)
        index = generator.integers(0, number, size=size)
        parts.append(np.asarray(statistic(*(array[index] for array in arrays))))
    return np.concatenate(parts)


def _bca(
    statistic: Statistic,
    arrays: list[Floats],
    draws: Floats,
    estimate: float,
    probabilities: tuple[float, float],
) -> tuple[float, float]:
    """Percentiles to read off instead, moved for bias z0 and acceleration a (Efron 1987)."""
    number, count = len(arrays[0]), len(draws)
    below = float((draws < estimate).sum() + 0.5 * (draws == estimate).sum())
    bias = normal_quantile(min(max(below, 0.5), count - 0.5) / count)
    left_out = np.array(
        [float(statistic(*(np.delete(array, i) for array in arrays))) for i in range(number)]
        if number > 1
        else [estimate]
    )
    gap = left_out.mean() - left_out
    spread = float((gap**2).sum()) ** 1.5
    speed = float((gap**3).sum()) / (6 * spread) if spread > 0 else 0.0

    def moved(probability: float) -> float:
        shifted = bias + normal_quantile(probability)
        return _NORMAL.cdf(bias + shifted / (1 - speed * shifted))

    return moved(probabilities[0]), moved(probabilities[1])


def _order_coverage(number: int, depth: int) -> float:
    """Chance that the median lies between the depth-th smallest and depth-th largest value."""
    logs = (_log_choose(number, k) - number * math.log(2) for k in range(depth))
    return 1 - 2 * math.fsum(math.exp(log) for log in logs)


def _log_choose(number: int, chosen: int) -> float:
    return math.lgamma(number + 1) - math.lgamma(chosen + 1) - math.lgamma(number - chosen + 1)


def _t_above(value: float, freedom: float) -> float:
    """P(T > value) for value >= 0 through the regularised incomplete beta function."""
    return 0.5 * _beta_share(freedom / 2, 0.5, freedom / (freedom + value * value))


def _beta_share(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta I_x(a, b) by its continued fraction (Abramowitz 26.5.8)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front += a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    fraction, upper, lower = 1.0, 1.0, 0.0
    for step in range(400):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = half * (b - half) * x / ((a + step - 1) * (a + step))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + step - 1) * (a + step))
        lower = 1 / _away_from_zero(1 + term * lower, tiny)
        upper = _away_from_zero(1 + term / upper, tiny)
        fraction *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return math.exp(front) * (fraction - 1) / a


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
