"""`skimp bench`."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.cli.conftest import Skimp, complaint, read

from skimp.cli import bench
from skimp.cli.common import Run
from skimp.progress import Progress

WORK = ("--workload", "16+8x2", "--rounds", "6", "--steps", "4")
SIDE = {
    "prefill_s",
    "tpot_s",
    "tokens_per_s",
    "weight_bytes",
    "kv_bytes_per_token",
    "peak_bytes",
    "roofline_share",
}


def test_both_sides_in_one_run(skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path) -> None:
    result = skimp("bench", folder, "--plan", zero_plan, *WORK, "--json", "b.json")
    for words in ("predicted", "95% interval", "speedup / bound", "Decoded ", "decode runs at"):
        assert words in result.stdout
    found = read(tmp_path / "b.json")
    assert found["workload"] == "16+8x2"
    for side in ("dense", "planned"):
        assert set(found[side]) >= SIDE
        assert all(found[side][name] > 0 for name in SIDE)
    assert found["planned"]["weight_bytes"] < found["dense"]["weight_bytes"]
    assert found["planned"]["kv_bytes_per_token"] * 2 == found["dense"]["kv_bytes_per_token"]
    assert found["byte_bound"]["decode"] > 1
    low, high = found["speedup"]["decode_interval"]
    assert low <= found["speedup"]["decode"] <= high
    for phase, bound in (("prefill", "compute_bound"), ("decode", "byte_bound")):
        assert found["predicted"]["speedup"][phase] > 0
        share = found["speedup"][phase] / found[bound][phase]
        assert found["collected"][phase]["share"] == pytest.approx(share)
    for side in ("dense", "planned"):
        assert set(found["predicted"][side]) == {"prefill_s", "tpot_s"}
        engine = found["engine"][side]
        assert (engine["reason"] is None) == (engine["path"] == "native")
    assert found["model"]["layers"] == 4
    assert found["plan"]["drop"]["attention"] == [1, 2]


def test_the_dense_model_alone(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    result = skimp("bench", folder, *WORK, "--json", "b.json")
    assert "predicted" in result.stdout
    assert "speedup" not in result.stdout
    found = read(tmp_path / "b.json")
    for name in ("planned", "speedup", "byte_bound", "collected"):
        assert found[name] is None
    assert found["predicted"]["planned"] is None


def _document(decode: float, low: float, high: float, bound: float) -> dict[str, Any]:
    """What `measure` gives, for sides that differ in decoding alone."""
    side = {"prefill_s": 2.0, "tpot_s": 0.5, "tokens_per_s": 4.0, "weight_bytes": 10**6}
    side |= {"kv_bytes_per_token": 64.0, "peak_bytes": 2 * 10**6, "roofline_share": 0.75}
    foretold = {"prefill_s": 1.5, "tpot_s": 0.375}
    native = {"path": "native", "reason": None}
    return {
        "workload": "16+8x2",
        "dense": side,
        "planned": {**side, "tpot_s": 0.5 / decode, "weight_bytes": 8 * 10**5},
        "speedup": {
            "prefill": 1.0,
            "prefill_interval": [0.9, 1.1],
            "decode": decode,
            "decode_interval": [low, high],
        },
        "predicted": {
            "dense": foretold,
            "planned": {**foretold, "tpot_s": 0.3125},
            "speedup": {"prefill": 1.0, "decode": 1.2},
        },
        "byte_bound": {"decode": bound},
        "compute_bound": {"prefill": 1.0},
        "collected": {
            "prefill": {"gain": None, "share": 1.0},
            "decode": {"gain": (decode - 1) / (bound - 1), "share": decode / bound},
        },
        "engine": {
            "dense": native,
            "planned": {"path": "torch", "reason": "too large"},
            "threads": 2,
        },
    }


def _shown(document: dict[str, Any]) -> str:
    """The lines that `show` prints, blanks joined."""
    console = Console(file=io.StringIO(), width=400, record=True)
    run = Run("skimp bench", None, 0, "cpu", "auto", console, Progress())
    bench.show(run, document)
    return "\n".join(" ".join(line.split()) for line in console.export_text().splitlines())


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    shown = _shown(_document(1.1, 1.08, 1.12, bound=1.25))
    assert "prefill 2.00 s 2.00 s 1.00×\npredicted 1.50 s 1.50 s 1.00×" in shown
    assert "time per output token 500 ms 455 ms 1.10×\npredicted 375 ms 312 ms 1.20×" in shown
    assert "predicted 1.00× 1.20×" in shown
    assert "Decoded dense natively, 2 threads; planned by torch (too large)." in shown


def test_how_much_of_the_bound_was_collected_is_said() -> None:
    shown = _shown(_document(1.1, 1.08, 1.12, bound=1.25))
    assert "speedup / bound 100.0% 88.0%" in shown
    assert "gain collected – 40.0%" in shown
    assert "Faster: decode runs at 1.10×" in shown
    assert "40% of that gain was collected, and the speedup is 88% of the bound." in shown


def test_a_plan_that_is_not_faster_gets_the_reason_in_bytes() -> None:
    shown = _shown(_document(0.98, 0.95, 1.01, bound=1.25))
    assert "Not faster: decode runs at 0.98×" in shown
    assert "Weights go from 1.00 MB to 800 kB (−20.0%)" in shown
    assert "gain collected – 0.0%" in shown


def test_one_sentence_if_both_decode_alike() -> None:
    document = _document(1.1, 1.08, 1.12, bound=1.25)
    document["engine"]["planned"] = document["engine"]["dense"]
    document["engine"]["threads"] = 1
    assert "Decoded natively, 1 thread." in _shown(document)


@pytest.mark.parametrize(
    ("words", "named"), [(["--workload", "500+100"], "context"), (["--rounds", "0"], "--rounds")]
)
def test_mistakes_are_named(skimp: Skimp, folder: Path, words: list[str], named: str) -> None:
    assert named in complaint(skimp("bench", folder, *words, code=2))
