"""How turns taken side by side are counted."""

import pytest
from bench.peering import pairs


def test_a_speedup_is_the_median_of_turns_taken_together() -> None:
    found = pairs.row([0.2] * 5 + [2.0] * 3, [0.1] * 5 + [1.0] * 3, 2.2)
    assert found["decode"] == pytest.approx(2)
    assert found["share"] == pytest.approx(2 / 2.2)
    assert found["gain"] == pytest.approx(1 / 1.2)


def test_what_turns_share_cancels() -> None:
    drifting = [1.0, 5.0, 2.0, 9.0, 3.0, 7.0]
    found = pairs.row(drifting, [time / 2 for time in drifting], 1.5)
    assert found["decode"] == 2.0
    assert found["decode_interval"] == (2.0, 2.0)
    assert found["dense_tpot_s"] == 4.0


def test_the_table_shows_what_was_varied() -> None:
    found = {"model": "m", "plan": "p", "context": 128, **pairs.row([0.2] * 8, [0.1] * 8, 2.0)}
    table = pairs.table("title", [found], ">context")
    assert [column.header for column in table.columns][2] == "context"
    assert list(table.columns[2].cells) == ["128"] and list(table.columns[6].cells) == ["100%"]
