"""The knapsack is exact: no combination does less harm for as much."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skimp.finder.choices import Choice
from skimp.finder.knapsack import pick
from skimp.methods.in_order import Place

LEVELS = ("a", "b")
Table = dict[Place, dict[Choice | None, float]]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, Table, float]:
    harms: Table = {}
    savings: Table = {}
    for layer in range(draw(st.integers(1, 4))):
        place: Place = (layer, "ffn")
        choices = [Choice(layer, "ffn", "drop", level) for level in LEVELS]
        value = st.integers(-3, 20)
        harms[place] = {None: 0.0} | {each: float(draw(value)) for each in choices}
        savings[place] = {None: 0.0} | {each: float(draw(st.integers(1, 9))) for each in choices}
    return harms, savings, float(draw(st.integers(0, 30)))


def best(harms: Table, savings: Table, wanted: float) -> float | None:
    totals = [
        sum(harms[place][choice] for place, choice in zip(harms, chosen, strict=True))
        for chosen in product(*harms.values())
        if sum(savings[p][c] for p, c in zip(harms, chosen, strict=True)) >= wanted
    ]
    return min(totals, default=None)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_nothing_does_less_harm(given: tuple[Table, Table, float]) -> None:
    harms, savings, wanted = given
    found = pick(harms, savings, wanted)
    least = best(harms, savings, wanted)
    if found is None:
        assert least is None
        return
    assert least is not None
    assert sum(savings[place][choice] for place, choice in found.items()) >= wanted - 1e-6
    harm = sum(harms[place][choice] for place, choice in found.items())
    assert harm == pytest.approx(least, abs=1e-3 * max(1, abs(least)))


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    choices = [Choice(layer, "ffn", "drop", "a") for layer in range(30)]
    harms: Table = {c.place: {None: 0.0, c: 1.0 + (c.layer * 7 % 11)} for c in choices}
    savings: Table = {c.place: {None: 0.0, c: 1.0 + (c.layer * 5 % 7)} for c in choices}
    pick(harms, savings, 41.5)
    assert capfd.readouterr().out == ""
