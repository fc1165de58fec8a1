"""The yardstick: measured once, kept, and never trusted when damaged."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from skimp.measure import machine


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small buffers and an own cache folder."""
    monkeypatch.setenv("SKIMP_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "_READ_BYTES", 4 << 20)
    monkeypatch.setattr(machine, "_BUDGET", {"bandwidth": 0.01, "matmul": 0.01, "launch": 0.01})
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads


def test_rates_are_plausible() -> None:
    found = machine.profile("cpu", torch.float32, 1)
    assert 1e8 < found.bandwidth < 1e14
    assert 1e8 < found.matmul < 1e16
    assert 1e-8 < found.launch < 1e-2
    assert found.threads == 1
    assert found.dtype == "float32"


def test_measured_once_then_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine.profile("cpu", torch.float32, 1)
    monkeypatch.setattr(machine, "_bandwidth", lambda device: pytest.fail("measured again"))
    assert machine.profile("cpu", torch.float32, 1) == first


def test_other_threads_and_types_are_measured_apart(tmp_path: Path) -> None:
    for dtype, threads in ((torch.float32, 1), (torch.bfloat16, 1), (torch.float32, 2)):
        assert machine.profile("cpu", dtype, threads).threads == threads
    assert len(json.loads((tmp_path / "machine.json").read_text())) == 3


def test_fresh_keeps_the_better_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine.profile("cpu", torch.float32, 1)
    monkeypatch.setattr(machine, "_bandwidth", lambda device: first.bandwidth / 2)
    monkeypatch.setattr(machine, "_matmul", lambda device, dtype: first.matmul * 2)
    monkeypatch.setattr(machine, "_launch", lambda device: first.launch * 2)
    second = machine.profile("cpu", torch.float32, 1, fresh=True)
    assert second.bandwidth == first.bandwidth
    assert second.matmul == 2 * first.matmul
    assert second.launch == first.launch
    assert machine.profile("cpu", torch.float32, 1) == second


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 3}', '{"key": {"cpu": 1}}'])
def test_a_damaged_file_means_measuring_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "machine.json").write_text(text)
    found = machine.profile("cpu", torch.float32, 1)
    assert machine.profile("cpu", torch.float32, 1) == found


def test_an_impossible_rate_is_not_believed(tmp_path: Path) -> None:
    machine.profile("cpu", torch.float32, 1)
    path = tmp_path / "machine.json"
    known = json.loads(path.read_text())
    for values in known.values():
        values["bandwidth"] = 0.0
    path.write_text(json.dumps(known))
    assert machine.profile("cpu", torch.float32, 1).bandwidth > 0


def test_a_place_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SKIMP_CACHE", str(tmp_path / "file" / "below"))
    assert machine.profile("cpu", torch.float32, 1).bandwidth > 0


def test_identity_names_the_machine_but_nobody() -> None:
    found = machine.identity()
    expected = {"cpu", "cores", "threads", "memory", "os", "python", "torch", "transformers"}
    assert expected <= set(found)
    text = json.dumps(found)
    assert socket.gethostname() not in found.values()
    assert str(Path.home()) not in text
    assert os.sep not in text.replace(str(found["cpu"]), "")
