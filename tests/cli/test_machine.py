"""`skimp machine`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Skimp, complaint, read

from skimp.measure import probes
from skimp.measure.rates import Rate, Rates

KEYS = {
    *("device", "cpu", "cores", "threads", "memory", "torch", "dtype", "bandwidth", "matmul"),
    *("launch", "products", "spread", "busy", "kernels", "measured", "steady"),
}
QUIET = Rates(Rate(30e9, 29e9), Rate(2e11, 2e11), Rate(1e6, 1e6), {1: 3e10, 256: 2e11}, 0.01)
BUSY = Rates(Rate(20e9, 0), Rate(2e11, 0), Rate(1e6, 0), {1: 2e10, 256: 2e11}, 0.6)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Rates]]:
    """What is measured, in turn; put the results to give out in, they are replaced."""
    seen: list[Any] = []
    monkeypatch.setattr(probes, "native_state", lambda: {"isa": None, "why_not": "a test"})

    def measure(
        device: Any, dtype: torch.dtype, threads: int, *, tries: int, step: Callable[[], None]
    ) -> Rates:
        busy = not seen
        seen.append((str(dtype).removeprefix("torch."), threads, BUSY if busy else QUIET))
        return seen[-1][2]

    monkeypatch.setattr(probes, "measure", measure)
    return seen


def test_one_profile_a_dtype_and_number_of_threads(
    skimp: Skimp, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    result = skimp("machine", "--json", "m.json")
    found = read(tmp_path / "m.json")
    combinations = [("bfloat16", 1), ("bfloat16", 6), ("float32", 1), ("float32", 6)]
    assert [(name, threads) for name, threads, _ in asked] == combinations
    profiles = found["profiles"]
    assert [(p["dtype"], p["threads"]) for p in profiles] == combinations
    assert all(set(profile) >= KEYS for profile in profiles)
    assert [profile["steady"] for profile in profiles] == [False, True, True, True]
    assert profiles[0]["spread"] == dict.fromkeys(("bandwidth", "matmul", "launch"))
    assert profiles[1]["spread"]["bandwidth"] == pytest.approx(1 / 29)
    assert profiles[1]["bandwidth"] == 30e9
    assert profiles[1]["products"] == [[1, 3e10], [256, 2e11]]
    assert found["kernels"] == {"isa": None, "why_not": "a test"}
    assert found["command"] == "skimp machine --json m.json"
    assert (found["model"], found["plan"], found["device"]) == (None, None, "cpu")
    assert found["machine"]["cores"] >= 1
    assert "a test" in result.stdout
    assert "not steady" in result.stdout.lower()
    assert "6" in result.stdout
    assert all(text in result.stdout for text in ("20.0", "30.0", "200", "1.00", "60.0%", "3.4%"))


def test_what_is_steady_is_read_and_what_is_not_is_measured_again(
    skimp: Skimp, asked: list[Any]
) -> None:
    words = ("machine", "--threads", "3")
    skimp(*words)
    assert [found[:2] for found in asked] == [("bfloat16", 3), ("float32", 3)]
    assert "yes" in skimp(*words).stdout  # the first one was not steady
    assert [found[:2] for found in asked[2:]] == [("bfloat16", 3)]
    healed = skimp(*words).stdout
    assert len(asked) == 3
    assert "not steady" not in healed.lower()
    skimp(*words, "--fresh")
    assert len(asked) == 5


def test_one_dtype_alone(skimp: Skimp, asked: list[Any]) -> None:
    skimp("machine", "--dtype", "fp16", "--threads", "1")
    assert [found[:2] for found in asked] == [("float16", 1)]


def test_json_on_standard_output_is_alone_there(skimp: Skimp, asked: list[Any]) -> None:
    result = skimp("machine", "--dtype", "float32", "--json", "-")
    assert json.loads(result.stdout)["profiles"][0]["dtype"] == "float32"
    assert "native kernels" in result.stderr


def test_a_real_measurement(skimp: Skimp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CPU", probes.Effort(1 << 20, (64, 32), (1, 4), 0.005))
    skimp("machine", "--dtype", "float32", "--threads", "1", "--json", "m.json")
    [profile] = read(tmp_path / "m.json")["profiles"]
    assert all(profile[name] > 0 for name in ("bandwidth", "matmul", "launch"))
    assert [rows for rows, _ in profile["products"]] == [1, 4]
    assert read(tmp_path / "m.json")["kernels"].keys() == {"isa", "why_not"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--dtype", "int3"], "int3"),
        (["--device", "toaster"], "toaster"),
        (["--threads", "0"], "--threads"),
        (["--json", "no/such/folder.json"], "--json"),
        (["demo"], "demo"),
    ],
)
def test_a_mistake_is_one_line_and_measures_nothing(
    skimp: Skimp, asked: list[Any], words: list[str], named: str
) -> None:
    assert named in complaint(skimp("machine", *words, code=2))
    assert asked == []


def test_it_is_named_and_has_examples(skimp: Skimp) -> None:
    assert " machine " in skimp("--help").stdout
    assert "skimp machine" in skimp("machine", "--help").stdout.partition("Examples")[2]
