"""What is made of the times: medians, intervals, and ratios in which drift cancels."""

import pytest
from bench.peering.figures import figures
from bench.peering.schedule import Record


def _record(times: list[float], scale: float = 1.0, **waited: float) -> Record:
    steps = [[t * scale] * 2 + [100 * t * scale] for t in times]
    return Record([10 * t * scale for t in times], steps, **waited)


def test_ratios_are_taken_within_a_turn_so_what_turns_share_cancels() -> None:
    drifting = [1.0, 5.0, 2.0, 9.0, 3.0, 7.0]
    found = figures(_record(drifting, 0.5), _record(drifting), step_bytes=1.0, bandwidth=1.0)
    assert found.ratio is not None
    assert found.ratio.decode == found.ratio.prefill == 2.0
    assert found.ratio.decode_interval == found.ratio.prefill_interval == (2.0, 2.0)
    # The times themselves did drift, and their intervals say so.
    assert found.tpot_interval[1] > 4 * found.tpot_interval[0]


def test_medians_and_quartiles() -> None:
    found = figures(_record([1.0, 2.0, 3.0]), None, step_bytes=1.0, bandwidth=1.0)
    assert found.prefill_s == 20.0
    assert found.tpot_s == 2.0  # one slow step a turn does not move it
    assert found.tokens_per_s == 0.5
    low, high = found.tpot_spread
    assert 1.0 <= low < found.tpot_s < high
    assert found.ratio is None


def test_an_interval_covers_its_median_and_widens_with_the_spread() -> None:
    tight = figures(_record([2.0, 2.1, 1.9] * 4), None, step_bytes=1.0, bandwidth=1.0)
    wide = figures(_record([2.0, 4.0, 1.0] * 4), None, step_bytes=1.0, bandwidth=1.0)
    for found in (tight, wide):
        assert found.tpot_interval[0] <= found.tpot_s <= found.tpot_interval[1]
    spans = [found.tpot_interval[1] - found.tpot_interval[0] for found in (tight, wide)]
    assert spans[0] < spans[1]


def test_the_roofline_is_the_time_to_read_the_bytes() -> None:
    found = figures(_record([2.0] * 6), None, step_bytes=30.0, bandwidth=60.0)
    assert found.roofline_share == pytest.approx(0.25)
    assert found.step_bytes == 30.0


def test_the_share_of_idle_time_that_was_not_idle() -> None:
    busy = figures(_record([1.0] * 6, idle=8.0, idle_cpu=2.0), None, step_bytes=1.0, bandwidth=1.0)
    assert busy.idle_cpu_share == 0.25
    alone = figures(_record([1.0] * 6), None, step_bytes=1.0, bandwidth=1.0)
    assert alone.idle_cpu_share == 0.0


def test_one_step_a_turn_is_enough() -> None:
    found = figures(Record([1.0], [[2.0]]), None, step_bytes=1.0, bandwidth=1.0)
    assert found.tpot_spread == (2.0, 2.0)
