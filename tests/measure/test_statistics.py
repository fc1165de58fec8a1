"""Intervals must cover what they claim to, and obey what pairing implies."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skimp.measure import statistics

CHEAP, DEAR = 3000, 500  # seeded experiments: closed forms and bootstraps
finite = st.floats(-1e6, 1e6, allow_nan=False)
pairs = st.lists(st.tuples(finite, finite), min_size=2, max_size=30)
flips = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def _coverage(truth, interval, replications: int) -> float:
    """Share of seeded experiments whose interval holds the truth."""
    generators = (np.random.default_rng([7, number]) for number in range(replications))
    return sum(truth in interval(generator) for generator in generators) / replications


def _paired_normal(generator):
    before = generator.normal(0, 3, 15)
    return statistics.paired_difference(before, before + generator.normal(0.3, 1, 15))


def _clustered(generator):
    sizes = generator.integers(1, 9, size=40)
    totals = [generator.normal(0.3 * size, size) for size in sizes]
    return statistics.clustered_mean(totals, sizes)


def _proportions(generator):
    draw = generator.random(400)
    # 5% of items are lost and 3% gained: the difference is -2 points.
    before = (draw < 0.6).astype(float)
    after = ((draw >= 0.05) & (draw < 0.63)).astype(float)
    return statistics.paired_proportions(before, after)


def _bootstrapped(method):
    def interval(generator):
        sample = generator.gamma(4.0, 0.25, size=60)
        return statistics.bootstrap(lambda x: x.mean(axis=-1), sample, resamples=600, method=method)

    return interval


def _ratio(generator):
    drift = np.exp(generator.normal(0, 0.02, 21))
    dense, planned = drift * np.exp(generator.normal(0, 0.05, (2, 21)))
    return statistics.ratio_interval(1.5 * dense, planned, resamples=600)


def _round_ratio(generator):
    drift = np.exp(generator.normal(0, 0.3, 21))
    dense, planned = drift * np.exp(generator.normal(0, 0.05, (2, 21)))
    return statistics.round_ratio_interval(1.5 * dense, planned)


def _median(generator):
    return statistics.median_interval(generator.exponential(size=20))


@pytest.mark.parametrize(
    ("truth", "interval", "replications"),
    [
        pytest.param(0.3, _paired_normal, CHEAP, id="paired-difference"),
        pytest.param(0.3, _clustered, CHEAP, id="clustered-mean"),
        pytest.param(-0.02, _proportions, CHEAP, id="paired-proportions"),
        pytest.param(1.0, _bootstrapped("percentile"), DEAR, id="bootstrap-percentile"),
        pytest.param(1.0, _bootstrapped("bca"), DEAR, id="bootstrap-bca"),
        pytest.param(1.5, _ratio, DEAR, id="ratio-of-medians"),
        pytest.param(1.5, _round_ratio, CHEAP, id="median-round-ratio"),
        pytest.param(math.log(2), _median, CHEAP, id="median"),
    ],
)
def test_nominal_95_percent_is_covered(truth, interval, replications) -> None:
    assert 0.93 <= _coverage(truth, interval, replications) <= 0.97


@given(pairs)
def test_identical_samples_differ_by_exactly_nothing(pairs) -> None:
    before = [first for first, _ in pairs]
    interval = statistics.paired_difference(before, before)
    assert (interval.estimate, interval.low, interval.high) == (0, 0, 0)
    resampled = statistics.bootstrap(
        lambda a, b: b.mean(axis=-1) - a.mean(axis=-1), before, before, resamples=20
    )
    assert resampled.width == 0


@given(pairs)
def test_swapping_the_runs_flips_the_interval(pairs) -> None:
    before, after = zip(*pairs, strict=True)
    forth, back = (
        statistics.paired_difference(before, after),
        statistics.paired_difference(after, before),
    )
    assert forth.estimate == -back.estimate
    assert (forth.low, forth.high) == (-back.high, -back.low)


@given(flips)
def test_paired_proportions_hold_their_estimate_and_flip(flips) -> None:
    before, after = np.array(flips, dtype=float).T
    forth = statistics.paired_proportions(before, after)
    back = statistics.paired_proportions(after, before)
    assert -1 <= forth.low <= forth.estimate <= forth.high <= 1
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert statistics.mcnemar(before, after) == statistics.mcnemar(after, before)


def test_no_flip_in_few_items_does_not_prove_that_none_would() -> None:
    few, many = ([1, 0] * count for count in (10, 1000))
    assert statistics.paired_proportions(few, few).width > 0.1
    assert statistics.paired_proportions(many, many).width < 0.01


@given(st.lists(st.floats(0.001, 1e3), min_size=2, max_size=20), st.floats(0.1, 10))
def test_a_speedup_of_scaled_times_is_the_scale(times, scale) -> None:
    scaled = [time * scale for time in times]
    interval = statistics.round_ratio_interval(scaled, times)
    assert interval.pair == pytest.approx((scale, scale))
    assert scale in statistics.Interval(0, *_widened(statistics.ratio_interval(scaled, times)))


def _widened(interval):
    return interval.low * (1 - 1e-9), interval.high * (1 + 1e-9)


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1), (0, 5, 0.0625), (2, 8, 0.109375)])
def test_mcnemar_is_the_exact_binomial_test(lost, gained, p) -> None:
    before = [1] * lost + [0] * gained + [1, 0]
    after = [0] * lost + [1] * gained + [1, 0]
    assert statistics.mcnemar(before, after) == pytest.approx(p)


def test_mcnemar_of_thousands_of_flips_does_not_underflow() -> None:
    p = statistics.mcnemar([1] * 2100 + [0] * 1900, [0] * 2100 + [1] * 1900)
    assert p == pytest.approx(0.00166, rel=0.01)


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    # Standard tables.
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.95, 10, 1.81246), (0.995, 29, 2.75639)],
)
def test_t_quantiles_are_those_of_the_tables(probability, freedom, value) -> None:
    assert statistics.t_quantile(probability, freedom) == pytest.approx(value, rel=1e-5)
    assert statistics.t_quantile(1 - probability, freedom) == pytest.approx(-value, rel=1e-5)


@given(st.floats(0.001, 0.999), st.floats(0.6, 1e6))
def test_t_quantiles_are_scipys(probability, freedom) -> None:
    scipy = pytest.importorskip("scipy.stats")
    expected = scipy.t.ppf(probability, freedom)
    assert statistics.t_quantile(probability, freedom) == pytest.approx(
        expected, rel=1e-6, abs=1e-9
    )


def test_bca_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    sample = np.random.default_rng(3).exponential(size=40)
    ours = statistics.bootstrap(lambda x: x.mean(axis=-1), sample, resamples=20_000, method="bca")
    theirs = scipy.bootstrap((sample,), np.mean, n_resamples=20_000, method="BCa", rng=0)
    assert ours.pair == pytest.approx(tuple(theirs.confidence_interval), rel=0.01)


def test_bootstraps_are_reproducible_and_depend_on_the_seed() -> None:
    sample = np.random.default_rng(0).normal(size=30)

    def interval(seed):
        return statistics.bootstrap(lambda x: x.mean(axis=-1), sample, seed=seed).pair

    assert interval(1) == interval(1) != interval(2)


def test_large_samples_are_resampled_in_blocks() -> None:
    sample = np.arange(300_000.0)
    seen = []

    def mean(x):
        seen.append(x.size)
        return x.mean(axis=-1)

    statistics.bootstrap(mean, sample, resamples=10)
    assert max(seen) < 2 * 2**20


def test_a_median_of_few_values_says_what_its_range_is_worth() -> None:
    interval = statistics.median_interval([3.0, 1.0, 2.0, 5.0])
    assert (interval.estimate, interval.low, interval.high) == (2.5, 1.0, 5.0)
    assert interval.level == pytest.approx(0.875)


def test_a_single_item_says_nothing_about_spread() -> None:
    interval = statistics.paired_difference([1.0], [2.0])
    assert interval.estimate == 1 and interval.low == -math.inf and interval.high == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.paired_difference([1.0, 2.0], [1.0]),
        lambda: statistics.paired_difference([], []),
        lambda: statistics.paired_proportions([0.5], [1.0]),
        lambda: statistics.ratio_interval([1.0, 0.0], [1.0, 1.0]),
        lambda: statistics.clustered_mean([1.0, 2.0], [0.0, 3.0]),
        lambda: statistics.bootstrap(np.mean, [1.0], [1.0, 2.0]),
        lambda: statistics.median_interval([]),
        lambda: statistics.t_quantile(1.0, 3),
    ],
)
def test_what_cannot_be_paired_is_refused(call) -> None:
    with pytest.raises(ValueError, match="must"):
        call()
