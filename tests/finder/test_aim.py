"""What is planned for, so that the clock shows what is wanted."""

import pytest

from skimp.finder import aim


def test_a_little_more_than_wanted_is_planned_for_at_first() -> None:
    assert 1.4 < aim.first(1.4) < 1.4 * 1.05


def test_what_the_nearest_plan_fell_short_by_is_made_up_for() -> None:
    timed = [(1.1, 1.1), (1.44, 1.32), (2.0, 1.7)]
    again = aim.again(1.4, timed)
    assert again == pytest.approx(aim.first(1.4) * 1.44 / 1.32)


def test_a_plan_far_too_fast_is_aimed_below() -> None:
    again = aim.again(1.4, [(1.44, 1.6)])
    assert again is not None and again < 1.4


def test_a_plan_that_runs_as_wanted_ends_it() -> None:
    assert aim.again(1.4, [(1.44, 1.41), (1.5, 1.3)]) is None
    assert aim.again(1.4, [(1.44, 1.399)]) is not None
    assert aim.again(1.4, []) is None
