"""Who runs when, and what is kept of each turn; engines are played by lists of answers."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from bench.peering.process import Out
from bench.peering.schedule import Record, Slot, Timing, run, slots

from skimp.workload import Workload

_NAMES = ("one", "two", "three")


class Played:
    """Answers every turn with times of its own and remembers what it was asked."""

    def __init__(self, name: str, *, fails_at: int | None = None) -> None:
        self.name, self.asked = name, []
        self._fails_at = fails_at

    def ask(self, order: str, **fields: Any) -> dict[str, Any]:
        assert order == "turn"
        self.asked.append(fields)
        number = len(self.asked)
        if number == self._fails_at:
            raise Out("had enough")
        answer = {"steps_s": [float(number)] * fields["steps"], "cpu_s": 100.0 + number}
        if fields["prompt"] is not None:
            answer["prefill_s"] = number + 0.5
        return {**answer, "idle_s": 2.0, "idle_cpu_s": 0.25}


def _timing(text: str = "4+6", rounds: int = 2, steps: int = 6, turn: int = 4) -> Timing:
    return Timing.plan(Workload.parse(text), rounds, steps, turn)


def _prompts(timing: Timing) -> Iterator[list[int]]:
    return ([number] * timing.start for number in count())


def _run(peers: list[Played], timing: Timing) -> tuple[dict[str, Record], dict[str, str]]:
    lost: dict[str, str] = {}
    prompts = _prompts(timing)
    records = run(peers, timing, lambda: next(prompts), fell_out=lost.__setitem__, settle=0.0)
    return records, lost


def test_steps_are_cut_into_turns_in_the_middle_of_the_answer() -> None:
    timing = _timing("10+20", steps=9, turn=4)
    assert timing.turns == (4, 4, 1)
    assert timing.start == 10 + (20 - 9) // 2
    assert timing.window == Workload(timing.start, 9)
    assert _timing("10+3", steps=9, turn=4).turns == (3,)
    assert _timing("10+8", steps=8, turn=4).turns == (4, 4)


def test_the_order_is_reversed_from_turn_to_turn_and_from_round_to_round() -> None:
    timing = _timing(rounds=2)
    assert list(slots(_NAMES, timing)) == [
        *(Slot(0, 0, name) for name in _NAMES),
        *(Slot(0, 1, name) for name in reversed(_NAMES)),
        *(Slot(1, 0, name) for name in reversed(_NAMES)),
        *(Slot(1, 1, name) for name in _NAMES),
    ]


def test_every_engine_reads_the_same_prompt_and_each_round_draws_another() -> None:
    timing = _timing("4+6", steps=2, turn=2)
    peers = [Played(name) for name in _NAMES]
    _run(peers, timing)
    assert peers[0].asked == peers[1].asked == peers[2].asked
    warm, first, second = peers[0].asked
    assert warm["prompt"] == [0] * 4
    # Two of six steps are timed: two tokens behind the prompt are read before them.
    assert first == {"prompt": [1] * 4, "behind": [1] * 6, "steps": 2}
    assert second == {"prompt": [2] * 4, "behind": [2] * 6, "steps": 2}


def test_only_the_first_turn_of_a_round_has_a_prefill() -> None:
    peer = Played("one")
    records, _ = _run([peer], _timing())
    assert [asked["prompt"] is None for asked in peer.asked[1:]] == [False, True, False, True]
    assert [asked["behind"] for asked in peer.asked[1:]] == [None] * 4
    assert [asked["steps"] for asked in peer.asked[1:]] == [4, 2, 4, 2]
    # The warm-up was the first order: nothing of it is in the record but the start of its clock.
    assert records["one"].prefills == [2.5, 4.5]
    assert records["one"].steps == [[2.0] * 4, [3.0] * 2, [4.0] * 4, [5.0] * 2]
    assert records["one"].idle == 4 * 2.0
    assert records["one"].idle_cpu == 4 * 0.25
    assert records["one"].cpu == 4.0


@pytest.mark.parametrize("fails_at", [1, 3])
def test_an_engine_that_fails_is_left_out_and_the_others_go_on(fails_at: int) -> None:
    peers = [Played("one"), Played("two", fails_at=fails_at), Played("three")]
    records, lost = _run(peers, _timing())
    assert list(records) == ["one", "three"]
    assert lost == {"two": "had enough"}
    assert len(peers[1].asked) == fails_at
    assert len(peers[0].asked) == len(peers[2].asked) == 5


def test_without_the_first_engine_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(Out, match="one, which the others are compared with: had enough"):
        _run([Played("one", fails_at=4), Played("two")], _timing())
