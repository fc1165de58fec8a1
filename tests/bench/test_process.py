"""Real worker processes around an engine of sleeps: turns, silence between them, and accidents."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bench.peering.process import Absent, Out, Peer, environment
from bench.peering.schedule import Timing, run

from skimp.workload import Workload

_FAKE = "tests.bench.fake_engine"
Hire = Callable[..., Peer]


@pytest.fixture
def hire(tmp_path: Path) -> Iterator[Hire]:
    """Starts workers, and ends them after the test."""
    peers: list[Peer] = []

    def start(name: str = "one", module: str = _FAKE, **wanted: Any) -> Peer:
        peers.append(Peer(name, module, sys.executable, 1, tmp_path / f"{name}.log"))
        peers[-1].ask("import")
        options = {"source": "none", "threads": 1, "length": 9}
        argument = json.dumps({"name": name, **wanted})
        peers[-1].ask("load", options={**options, "argument": argument})
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()


def _turn(peer: Peer, steps: int = 2, **fields: Any) -> dict[str, Any]:
    return peer.ask("turn", **{"prompt": [1], "behind": None, "steps": steps, **fields})


def test_no_two_engines_ever_run_at_once(hire: Hire, tmp_path: Path) -> None:
    log = str(tmp_path / "calls")
    names = ("one", "two", "three")
    peers = [hire(name, log=log, step_s=0.003) for name in names]
    timing = Timing.plan(Workload(3, 4), rounds=2, steps=4, turn=2)
    lost: dict[str, str] = {}
    records = run(peers, timing, lambda: [7] * timing.start, fell_out=lost.__setitem__)
    assert not lost
    calls = [json.loads(line) for line in Path(log).read_text().splitlines()]
    assert all(before["end"] <= after["begin"] for before, after in pairwise(calls))
    for name in names:
        mine = [call for call in calls if call["name"] == name]
        warm, rest = mine[:4], mine[4:]
        assert [call["what"] for call in warm] == ["prefill", "prefill", "decode", "decode"]
        assert [call["what"] for call in rest] == (["prefill"] + ["decode"] * 4) * 2
        assert {call["tokens"] for call in rest if call["what"] == "prefill"} == {3}
        assert min(seconds for turn in records[name].steps for seconds in turn) >= 0.003


def test_what_libraries_print_stays_out_of_the_answers(tmp_path: Path) -> None:
    peer = Peer("one", _FAKE, sys.executable, 1, tmp_path / "log")
    try:
        versions = peer.ask("import")["versions"]
    finally:
        peer.close()
    assert versions == {"python": sys.version.split()[0], "fake": "1"}
    assert "libraries print things" in (tmp_path / "log").read_text()


def test_what_an_engine_says_of_itself_comes_with_loading(tmp_path: Path) -> None:
    peer = Peer("one", _FAKE, sys.executable, 1, tmp_path / "log")
    try:
        peer.ask("import")
        options = {"source": "none", "threads": 1, "length": 41}
        assert peer.ask("load", options=options) == {"about": {"length": "41"}}
    finally:
        peer.close()


def test_an_engine_that_spins_between_its_turns_is_found_out(hire: Hire) -> None:
    shares = {}
    for name, spin in (("calm", False), ("restless", True)):
        peer = hire(name, spin=spin)
        _turn(peer)
        time.sleep(0.3)
        answer = _turn(peer)
        assert answer["idle_s"] >= 0.3
        shares[name] = answer["idle_cpu_s"] / answer["idle_s"]
    # On a busy machine a spinning thread gets less than a core, but never next to nothing.
    assert shares["restless"] > 10 * shares["calm"]


def test_the_first_turn_has_no_idle_time_before_it(hire: Hire) -> None:
    peer = hire()
    assert _turn(peer)["idle_s"] == 0.0
    assert _turn(peer)["idle_s"] > 0.0


def test_a_turn_goes_on_where_the_last_one_stopped(hire: Hire, tmp_path: Path) -> None:
    peer = hire(log=str(tmp_path / "calls"))
    first, second = _turn(peer, 2), _turn(peer, 3, prompt=None)
    assert "prefill_s" in first
    assert "prefill_s" not in second
    assert [len(answer["steps_s"]) for answer in (first, second)] == [2, 3]
    calls = [json.loads(line)["what"] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == ["prefill"] + ["decode"] * 5


def test_tokens_are_judged_behind_those_that_are_given(hire: Hire) -> None:
    peer = hire()
    free = peer.ask("agree", prompt=[4, 5], forced=[], count=4)["chosen"]
    assert free == [6, 7, 8, 9]
    forced = peer.ask("agree", prompt=[4, 5], forced=[50, 60, 70, 80], count=4)["chosen"]
    assert forced == [6, 51, 61, 71]


def test_a_failing_order_is_one_line_and_the_process_lives_on(hire: Hire) -> None:
    peer = hire(fail_at=2)
    with pytest.raises(Out, match=r"^ValueError: no more$"):
        _turn(peer)
    assert len(_turn(peer)["steps_s"]) == 2


def test_a_process_that_dies_says_its_last_words(hire: Hire) -> None:
    peer = hire(die_at=1)
    with pytest.raises(Out, match="ended with status 3: out of something"):
        _turn(peer)
    with pytest.raises(Out, match="ended with status 3"):
        _turn(peer)


def test_an_engine_that_does_not_answer_is_ended(hire: Hire) -> None:
    peer = hire(step_s=60.0)
    begin = time.monotonic()
    with pytest.raises(Out, match="no answer to 'turn' within 0 s"):
        _turn(peer, patience=0.2)
    peer.close()
    assert time.monotonic() - begin < 30


def test_a_missing_package_and_a_missing_interpreter_are_absent(tmp_path: Path) -> None:
    with pytest.raises(Absent, match=r"/no/python cannot be run \(No such file"):
        Peer("one", _FAKE, "/no/python", 1, tmp_path / "log")
    peer = Peer("one", "bench.engines.no_such_engine", sys.executable, 1, tmp_path / "log")
    try:
        with pytest.raises(Absent, match="no_such_engine is not installed"):
            peer.ask("import")
    finally:
        peer.close()


def test_workers_get_as_many_threads_as_asked_for() -> None:
    found = environment(3)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "3"
    assert "PATH" in found
