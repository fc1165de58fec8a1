"""Formatting and axes."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skimp.report import numbers
from skimp.report.scale import axis, ticks

_ANY = st.none() | st.floats()
_SHOWN = [
    numbers.significant,
    numbers.count,
    numbers.times,
    numbers.share,
    numbers.points,
    numbers.plus,
    numbers.size,
    numbers.seconds,
]


@pytest.mark.parametrize("show", _SHOWN)
@given(value=_ANY)
def test_every_number_has_a_text(show, value: float | None) -> None:
    text = show(value)
    assert text and "nan" not in text and "inf" not in text
    assert (text == numbers.GAP) == (value is None or math.isnan(value))
    assert "-" not in text, "a hyphen is no minus sign"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.significant(0.0123456), "0.0123"),
        (numbers.significant(999.7), "1,000"),
        (numbers.significant(-1.5), "−1.50"),
        (numbers.significant(1.2e-7), "1.20e−7"),
        (numbers.significant(math.inf), "∞"),
        (numbers.times(1.0), "1.00×"),
        (numbers.share(0.2309), "23.1%"),
        (numbers.points(-0.0081), "−0.8"),
        (numbers.points(0.0003), "0.0"),
        (numbers.size(269_500_000), "270 MB"),
        (numbers.size(999_900_000), "1.00 GB"),
        (numbers.size(46_080), "46.1 kB"),
        (numbers.size(12), "12.0 B"),
        (numbers.seconds(0.0301), "30.1 ms"),
        (numbers.seconds(0.00002), "20.0 µs"),
        (numbers.seconds(7.25), "7.25 s"),
        (numbers.seconds(5400), "90.0 min"),
        (numbers.change(90, 100), "−10.0%"),
        (numbers.change(100, 100), "±0%"),
        (numbers.change(1, 0), numbers.GAP),
        (numbers.tick(0.02, 0.02), "0.02"),
        (numbers.tick(-5.0, 5.0), "−5"),
        (numbers.setting(20261122), "20261122"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert text == expected


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-6, 1e6))
def test_ticks_cover_their_range_in_few_round_steps(low: float, span: float) -> None:
    found = ticks(low, low + span)
    slack = 1e-6 * (abs(low) + span)
    assert found[0] <= low + slack and found[-1] >= low + span - slack
    assert 1 <= len(found) <= 8
    assert found == sorted(found)


@given(values=st.lists(_ANY, max_size=40), trim=st.booleans())
@example(values=[5e-324], trim=False)
@example(values=[-1.7e308, 1.7e308], trim=False)
@example(values=[1e16, 1e16 + 2], trim=True)
def test_an_axis_holds_zero_and_places_everything(values: list, trim: bool) -> None:
    scale = axis(values, trim=trim)
    assert scale.low <= 0 <= scale.high and scale.low < scale.high
    for value in values:
        if value is not None and not math.isnan(value):
            assert 0 <= scale.at(value) <= 1
    if not trim:
        assert not any(v is not None and math.isfinite(v) and scale.cuts(v) for v in values)


def test_giants_are_cut_and_ordinary_values_are_not() -> None:
    ordinary = [0.01 * number for number in range(1, 30)]
    scale = axis([*ordinary, 50.0], trim=True)
    assert scale.cuts(50.0)
    assert not any(scale.cuts(value) for value in ordinary)
