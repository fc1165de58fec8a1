"""What a search found, in the terminal."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.report.searching import entry, plan, search

from skimp.cli.frontier_table import sketch, table


def printed(made: Any, width: int = 80) -> list[str]:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(made)
    return [line.rstrip() for line in capture.get().splitlines()]


def drawn(*points: tuple[float, float], **more: Any) -> list[str]:
    return sketch(points, **more).plain.split("\n")


def row(found: Any, number: int, width: int = 120) -> str:
    return next(line for line in printed(table(found), width) if line.split()[:1] == [str(number)])


def test_a_row_holds_what_was_measured() -> None:
    one = plan(
        3,
        "rule",
        "half [bold]",
        1.12,
        0.03,
        left_out={"attention": [7, 12], "ffn": [0], "keep": [0.0, 0.5, 1.0]},
        speedup=1.09,
        kl=0.05,
    )
    found = {**search(), "plans": [entry(0, "dense", "dense"), one]}
    words = ["half", "[bold]", "1.09×", "1.12×", "+0.0300", "0.050", "2/1", "75%"]
    assert row(found, 3).split() == ["3", *words]


def test_what_was_not_timed_or_not_faster_is_called_so() -> None:
    found = search(3, 0)
    found["plans"][1].update(speedup=None, speedup_interval=None)
    found["plans"][2].update(speedup=1.01, speedup_interval=[0.99, 1.03])
    lines = printed(table(found))
    assert sum("not timed" in line for line in lines) == 1
    assert sum("not faster" in line for line in lines) == 1
    assert "–" in row(found, 1).split()
    assert "1.30×" in row(found, 1).split()  # its byte bound, in a column of its own
    assert found["plans"][1]["byte_bound"] == pytest.approx(1.3)


def test_the_frontier_comes_first_and_the_choice_is_marked() -> None:
    lines = printed(table(search(6, 3)))
    numbers = [int(line[:4]) for line in lines if line[:4].strip().isdecimal()]
    assert numbers == list(range(10))
    assert sum("chosen" in line for line in lines) == 1
    assert sum("withheld" in line for line in lines) == 1
    assert sum("beaten" in line for line in lines) == 3


def test_a_bare_search_has_a_table() -> None:
    lone = {"plans": [{"number": 0, "source": "dense", "name": "dense"}]}
    assert "dense" in row(lone, 0)
    assert printed(table({"plans": []}))


def test_the_table_fits_80_columns() -> None:
    lines = printed(table(search()))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text  # no figure is cut
    for one in search()["plans"]:
        assert f"{one['speedup']:.2f}×" in text and f"{one['byte_bound']:.2f}×" in text


def test_marks_stand_where_their_numbers_say() -> None:
    lines = drawn((1.0, 0.0), (1.5, 0.1), (2.0, 0.4), width=48, height=9)
    assert len(lines) == 9 + 2
    places = {(line.index("●"), number) for number, line in enumerate(lines) if "●" in line}
    assert places == {(8, 8), (8 + 20, 6), (8 + 39, 0)}
    assert lines[0].startswith("  0.40 ┤") and lines[8].startswith("     0 ┤")
    assert lines[-1].split() == ["1.00×", "speed", "2.00×"]
    assert any("·" in line for line in lines)


def test_others_are_lettered_and_named() -> None:
    others = [("greedy,\nattention [33%]", 1.5, 0.3), ("x" * 90, 1.6, 0.35), ("gone", math.nan, 1)]
    lines = drawn((1.0, 0.0), (2.0, 0.4), others=others)
    text = "\n".join(lines)
    assert "a  greedy, attention [33%]  1.50×, 0.300" in text
    assert "…  1.60×, 0.350" in text and "gone" not in text
    plot = "\n".join(line[8:] for line in lines[:14])
    assert plot.count("a") == plot.count("b") == 1
    assert max(map(len, lines)) <= 60


def test_a_shared_place_is_marked_as_such() -> None:
    text = "\n".join(drawn((1.0, 0.0), (2.0, 0.4), others=[("same", 2.0, 0.4)])[:14])
    assert "*" in text and text.count("●") == 1


@pytest.mark.parametrize(
    "points",
    [[], [(1.0, 0.0)], [(1.1, 0.2)] * 3, [(1.1, -0.2), (1.3, -0.2)], [(1.2, 0.1), (1.2, 0.3)]],
)
def test_few_and_equal_points_are_drawn(points: list[tuple[float, float]]) -> None:
    lines = drawn(*points)
    assert sum(line.count("●") for line in lines) == len(set(points))
    if not points:
        assert lines == ["nothing measured so far"]


_number = st.floats() | st.sampled_from([0.0, 1.0, 1.1, -0.5, 1e-300])


@settings(deadline=None, max_examples=60)
@given(
    points=st.lists(st.tuples(_number, _number), max_size=6),
    others=st.lists(st.tuples(st.text(max_size=99), _number, _number), max_size=30),
    width=st.integers(-3, 120),
    height=st.integers(-3, 30),
)
def test_nothing_breaks_a_sketch(
    points: list[tuple[float, float]],
    others: list[tuple[str, float, float]],
    width: int,
    height: int,
) -> None:
    lines = drawn(*points, others=others, width=width, height=height)
    seen = [y for x, y in points if math.isfinite(x) and math.isfinite(y)]
    beside = [y for _, x, y in others if math.isfinite(x) and math.isfinite(y)]
    if seen or beside:
        rows = max(3, height)
        assert len(lines) == rows + 2 + len(beside)
        assert max(len(line) for line in lines[: rows + 2]) <= max(width, 20)
    printed(sketch(points, others, width, height), 80)
