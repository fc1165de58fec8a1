"""Rates of a machine as numbers: the best of several tries, and products by their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

# A machine is left alone while other programs take no more than this share of all cores. Tries on
# one that is not may agree, and yet all be slow, where something else runs all the time.
QUIET = 0.1
# Row counts whose rate is that of a prefill.
_PREFILL_ROWS = 256


@dataclass(frozen=True)
class Rate:
    """Units a second. `second` confirms `best`: the next best try on a machine left alone, or 0."""

    best: float
    second: float

    @classmethod
    def of(cls, tries: Sequence[float], *, quiet: bool) -> "Rate":
        """The best two of at least two tries; where other programs ran, they confirm nothing."""
        best, second, *_ = sorted(tries, reverse=True)
        return cls(best, second if quiet else 0.0)

    @property
    def gap(self) -> float | None:
        """How much better the best try is, as a share of the one that confirms it, if any."""
        return self.best / self.second - 1 if self.second else None

    def joined(self, other: "Rate") -> "Rate":
        """The best of both, and what confirms it best."""
        worse, better = sorted((self, other), key=lambda rate: (rate.best, rate.second))
        confirming = worse.best if worse.second else 0.0
        return Rate(better.best, max(better.second, worse.second, confirming))


@dataclass(frozen=True)
class Rates:
    """What was measured. `read`: bytes/s, `matmul`: FLOP/s of prefills, `launch`: launches/s.

    `products`: FLOP/s by how many rows are multiplied with weights that no cache holds. `busy`:
    share of all cores that other programs took meanwhile.
    """

    read: Rate
    matmul: Rate
    launch: Rate
    products: Mapping[int, float]
    busy: float

    def joined(self, other: "Rates") -> "Rates":
        """The better of two measurements in every rate, and the quieter of the two."""
        rows = sorted(self.products.keys() | other.products.keys())
        return Rates(
            self.read.joined(other.read),
            self.matmul.joined(other.matmul),
            self.launch.joined(other.launch),
            {n: max(self.products.get(n, 0.0), other.products.get(n, 0.0)) for n in rows},
            min(self.busy, other.busy),
        )


def prefill_rate(products: Mapping[int, float]) -> float:
    """The best rate at as many rows as prefills have (at any, where so many were not tried)."""
    many = [rate for rows, rate in products.items() if rows >= _PREFILL_ROWS]
    return max(many or products.values())


def rate_at(products: Sequence[tuple[int, float]], rows: float) -> float:
    """FLOP/s of a product with `rows` rows, read off those measured; it never falls with more rows.

    Neither does the time: many rows can be multiplied a few at a time, so no more rows are slower
    per row; and a few can be padded to many, so no fewer rows take longer. What was measured
    against that was disturbed. Between two counts the rate is interpolated on log scales; below
    the least count it is the rate there, and above the largest that of the largest.
    """
    chunked: list[tuple[int, float]] = []
    for count, rate in sorted(products):
        chunked.append((count, max(rate, chunked[-1][1] if chunked else 0.0)))
    smooth: list[tuple[int, float]] = []
    for count, rate in reversed(chunked):
        padded = smooth[-1][1] * count / smooth[-1][0] if smooth else 0.0
        smooth.append((count, max(rate, padded)))
    smooth.reverse()
    if rows <= smooth[0][0]:
        return smooth[0][1]
    for (low, slow), (high, fast) in pairwise(smooth):
        if rows <= high:
            way = log(rows / low) / log(high / low)
            return exp((1 - way) * log(slow) + way * log(fast))
    return smooth[-1][1]
