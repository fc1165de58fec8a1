"""What the load bench takes for a fault, and what not."""

from typing import Any

import pytest

pytest.importorskip("httpx", reason="httpx is not installed")

from bench import load

EXPECTED = load.Expected("a", 4, (5, 6, 7, 8), (2.0, 0.05, 2.0, 2.0))


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([5, 6, 7, 8], (0, 0)),
        ([5, 9, 9, 9], (1, 0)),  # the second was hardly ahead
        ([9, 6, 7, 8], (0, 1)),
        ([5, 6, 7], (0, 1)),
        ([5], (1, 0)),
        ([], (0, 1)),
        ([5, 6, 7, 8, 9], (0, 1)),
    ],
)
def test_answers_unlike_the_lone_one(tokens: list[int], found: tuple[int, int]) -> None:
    tally = load.Tally()
    load.compare(EXPECTED, tokens, tally)
    assert (tally.ties, len(tally.wrong)) == found


def test_the_summary_s_figures() -> None:
    tally = load.Tally(answers=2, tokens=30, first_s=[0.1, 0.3], gap_s=[0.01])
    tally.memory = [(float(second), 100 + second) for second in range(9)]
    found: dict[str, Any] = load.summary(tally, 10.0, 4)
    assert found["tokens_per_s"] == 3.0
    assert (found["memory_first"], found["memory_last"], found["memory_most"]) == (101, 107, 108)
    assert found["first_s"]["median"] == pytest.approx(0.2)
    assert found["gap_s"] is None
    assert load.table(found).row_count > 8
