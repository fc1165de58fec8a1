"""CPU time of other programs: what the machine was busy with, less our own."""

import time
from typing import Any

import psutil
import pytest
from bench.peering import strangers


class _System:
    """A clock, the machine's CPU times and this process's own, all set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.own = 0.0, 0.0
        self.times = {"user": 0.0, "system": 0.0, "idle": 0.0, "iowait": 0.0, "steal": 0.0}
        monkeypatch.setattr(time, "perf_counter", lambda: self.clock)
        monkeypatch.setattr(time, "process_time", lambda: self.own)
        monkeypatch.setattr(psutil, "cpu_times", lambda: self)

    def _asdict(self) -> dict[str, Any]:
        return dict(self.times)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> _System:
    return _System(monkeypatch)


def test_others_are_what_is_left(system: _System) -> None:
    found = strangers.Strangers()
    system.clock, system.own = 10.0, 1.0
    system.times |= {"user": 12.0, "system": 1.0, "steal": 2.0, "idle": 5.0, "iowait": 3.0}
    assert found.cores(engines=9.0) == pytest.approx((12 + 1 + 2 - 9 - 1) / 10)


def test_alone_is_none_busy(system: _System) -> None:
    found = strangers.Strangers()
    system.clock, system.times["user"] = 10.0, 9.95  # ticks may be a little short
    assert found.cores(engines=10.0) == 0.0


def test_figures_that_cannot_be_right_are_no_figures(system: _System) -> None:
    found = strangers.Strangers()
    system.clock = 10.0  # a sandbox that counts nothing
    assert found.cores(engines=10.0) is None
