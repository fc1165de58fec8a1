"""`skimp bench`."""

from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint, read

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
    assert "decode speedup" in result.stdout
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


def test_the_dense_model_alone(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    skimp("bench", folder, *WORK, "--json", "b.json")
    found = read(tmp_path / "b.json")
    assert found["planned"] is None
    assert found["speedup"] is None
    assert found["byte_bound"] is None


@pytest.mark.parametrize(
    ("words", "named"), [(["--workload", "500+100"], "context"), (["--rounds", "0"], "--rounds")]
)
def test_mistakes_are_named(skimp: Skimp, folder: Path, words: list[str], named: str) -> None:
    assert named in complaint(skimp("bench", folder, *words, code=2))
