"""Stop strings: found in any split of the text, never given out, nothing held back for long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skimp.engine.stopping import StopStrings
from skimp.errors import RequestError

# Two letters make stop strings that overlap themselves and each other.
FEW = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


def by_character(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the first stop string and which it was, by looking at every beginning."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def streamed(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    stream = StopStrings(stops)
    given_out = "".join(stream.add(piece) for piece in pieces)
    return given_out + stream.rest(), stream.stopped


@given(pieces=st.lists(FEW, max_size=8), stops=STOPS)
def test_the_text_ends_at_the_first_stop_however_it_is_split(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    expected = by_character(text, stops)
    assert streamed(pieces, stops) == expected
    assert streamed([text], stops) == expected
    assert streamed(list(text), stops) == expected


@given(pieces=st.lists(st.text(max_size=6), max_size=6), stop=st.text(min_size=1, max_size=4))
def test_any_characters(pieces: list[str], stop: str) -> None:
    text = "".join(pieces)
    assert streamed([*pieces, stop], [stop])[0] == (text + stop)[: (text + stop).index(stop)]


@given(pieces=st.lists(FEW, max_size=8), stops=STOPS)
def test_only_what_may_become_a_stop_is_held_back(pieces: list[str], stops: list[str]) -> None:
    stream = StopStrings(stops)
    text, out = "", ""
    for piece in pieces:
        text += piece
        out += stream.add(piece)
        if stream.stopped is not None:
            return
        ends = [text[start:] for start in range(len(text) + 1)]
        held = next(end for end in ends if not end or any(s.startswith(end) for s in stops))
        assert out + held == text


@given(text=FEW, stops=STOPS, more=FEW)
def test_nothing_comes_after_a_stop(text: str, stops: list[str], more: str) -> None:
    stream = StopStrings(stops)
    stream.add(text)
    stopped = stream.stopped
    if stopped is not None:
        assert (stream.add(more), stream.rest(), stream.stopped) == ("", "", stopped)


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stopped"),
    [
        (["one\n", "\ntwo"], ["\n\n"], "one", "\n\n"),
        (["a", "b", "c"], ["abcd", "bc"], "a", "bc"),  # the first to be complete, not to begin
        (["xabc"], ["c", "abc"], "x", "abc"),  # complete together: the longest
        (["xabc"], ["abc", "c"], "x", "abc"),  # in whatever order they are given
        (["aab", "aac"], ["aac"], "aab", "aac"),
        (["ends in a st"], ["stop"], "ends in a st", None),
        (["stop"], ["stop"], "", "stop"),
        (["🌊", "🌊"], ["🌊🌊"], "", "🌊🌊"),
        (["", "text", ""], [], "text", None),
    ],
)
def test_examples(pieces: list[str], stops: list[str], text: str, stopped: str | None) -> None:
    assert streamed(pieces, stops) == (text, stopped)


def test_text_flows_while_no_stop_is_near() -> None:
    stream = StopStrings(["\nUser:"])
    assert stream.add("The river") == "The river"
    assert stream.add("\n") == ""
    assert stream.add("runs\nUs") == "\nruns"
    assert stream.rest() == "\nUs"
    assert stream.rest() == ""


@pytest.mark.parametrize(
    ("stops", "named"),
    [([""], "stop 0"), (["a", ""], "stop 1"), (["a", 3], "stop 1"), ("ab", "'ab'")],
)
def test_stops_that_cannot_be_are_named(stops: list[str], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        StopStrings(stops)
