"""Which plan a budget asks for: of made-up frontiers the right one, or why there is none."""

from typing import Any

import numpy as np
import pytest

from skimp.finder.budget import Budget
from skimp.finder.select import Selection, select

Entry = dict[str, Any]


def frontier(
    *plans: tuple[float, float], noise: float = 0.01
) -> tuple[list[Entry], dict[int, list[list[float]]]]:
    """Entries and sums of plans of these (speed, loss), after the dense model."""
    entries: list[Entry] = [{"number": 0, "source": "dense"}]
    sums = {}
    for number, (speed, loss) in enumerate(plans, 1):
        random = np.random.default_rng(number)
        rises = 40 * (loss + noise * random.standard_normal(40))
        sums[number] = [[40.0, 100.0, 100.0 + rise, abs(rise), 0, 0, 0] for rise in rises]
        entries.append(
            {
                "number": number,
                "source": "finder",
                "speedup": speed,
                "speedup_interval": [speed - 0.01, speed + 0.01],
                "byte_bound": speed * 1.01,
                "loss_difference": loss,
                "kl": abs(loss),
                "memory": 2**30 / speed,
                "kv": 2**20,
                "joint": loss,
                "tokens": 1600,
            }
        )
    return entries, sums


def chosen(
    *texts: str, plans: list[tuple[float, float]], again: float = 1.0, known: float = 0.01
) -> Selection:
    entries, sums = frontier(*plans)
    by_number = {entry["number"]: entry for entry in entries}

    def timed(number: int) -> tuple[float, tuple[float, float]]:
        speed = by_number[number]["speedup"] * again
        return speed, (speed - known, speed + known)

    return select(Budget.parse(list(texts)), entries, sums, timed)


PLANS = [(1.05, 0.01), (1.2, 0.05), (1.4, 0.2), (1.6, 0.6)]


def test_the_fastest_that_keeps_the_quality() -> None:
    found = chosen("loss<=10%", plans=PLANS)
    assert found.number == 2
    assert found.promise is not None
    assert found.promise["looked_at"] == 3
    assert 0.05 < found.promise["bound"] < 0.0954
    assert "95%" in found.promise["words"]


def test_the_promise_is_of_the_plan_that_is_handed_out() -> None:
    """Not of the last that passed: that one may be slower."""
    plans = [(1.3, 0.01), (1.1, 0.05), (1.6, 0.6)]
    found = chosen("loss<=10%", plans=plans)
    assert found.number == 1 and found.promise is not None
    assert found.promise["bound"] < 0.03


def test_the_best_that_is_fast_enough() -> None:
    assert chosen("speedup>=1.3x", plans=PLANS).number == 3


def test_both_sides_of_a_budget_are_kept() -> None:
    assert chosen("loss<=10%", "speedup>=1.1x", plans=PLANS).number == 2
    found = chosen("loss<=10%", "speedup>=1.3x", plans=PLANS)
    assert found.number is None
    assert found.nearest in (2, 3)
    assert "No plan keeps loss<=10%, speedup>=1.3x" in found.words


def test_an_impossible_budget_names_the_nearest_plan() -> None:
    found = chosen("speedup>=5x", plans=PLANS)
    assert (found.number, found.nearest) == (None, 4)
    assert "it has 1.6x" in found.words


def test_what_cannot_be_shown_says_what_is_lacking() -> None:
    entries, sums = frontier((1.1, 0.004), noise=0.06)
    found = select(Budget.parse(["loss<=1%"]), entries, sums, lambda _: (1.1, (1.0, 1.2)))
    assert found.number is None
    assert "needs about" in found.words and "more held-out tokens" in found.words


def test_a_plan_slower_than_promised_is_withheld_with_the_reason() -> None:
    found = chosen("speedup>=1.3x", plans=PLANS, again=0.8)
    assert found.number is None
    assert [each["number"] for each in found.withheld] == [3, 4]
    assert "by its bytes it could be 1.41x" in found.withheld[0]["reason"]


def test_the_second_timing_makes_the_promise() -> None:
    found = chosen("loss<=30%", plans=[(1.4, 0.1)], again=0.97)
    assert found.promise is not None
    assert found.promise["speedup"] == pytest.approx(1.4 * 0.97)
    low, high = found.promise["speedup_interval"]
    assert low == pytest.approx(1.4 * 0.97 - 0.01) and high == pytest.approx(1.4 * 0.97 + 0.01)


def test_a_plan_that_the_second_timing_finds_too_slow_is_withheld() -> None:
    found = chosen("speedup>=1.3x", plans=[(1.31, 0.1), (1.5, 0.3)], again=0.97)
    assert found.number == 2
    assert [each["number"] for each in found.withheld] == [1]
    assert "less than asked for" in found.withheld[0]["reason"]


def test_a_speed_that_is_asked_for_must_be_known() -> None:
    found = chosen("speedup>=1.3x", plans=[(1.4, 0.1)], known=0.1)
    assert found.number is None
    assert "not known to within 5%" in found.withheld[0]["reason"]
    assert chosen("loss<=30%", plans=[(1.4, 0.1)], known=0.1).number == 1


def test_memory_counts_at_the_workload() -> None:
    assert chosen("memory<=0.8GiB", plans=PLANS).number == 3


@pytest.mark.parametrize("texts", [(), ("loss<=10%",)])
def test_without_plans_or_budget_nothing_is_chosen(texts: tuple[str, ...]) -> None:
    found = select(Budget.parse(list(texts)), [], {}, lambda _: (1.0, (1.0, 1.0)))
    assert found.number is None and found.words
