"""`skimp demo` on the real demo model."""

from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint, read


def test_a_place_that_cannot_be_written(skimp: Skimp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--out" in complaint(skimp("demo", "--out", "file", code=2))


@pytest.mark.demo
@pytest.mark.slow
def test_quick(skimp: Skimp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKIMP_CACHE")  # unpacking the model again would take minutes
    result = skimp("demo", "--quick", "--json", "summary.json")
    out = tmp_path / "demo"
    names = {path.name for path in out.iterdir()}
    verbs = ("inspect", "plan", "eval", "eval_last", "bench", "apply", "samples")
    assert names >= {f"{verb}.json" for verb in verbs}
    assert names >= {"plan.yaml", "plan.safetensors", "model", "report.html"}
    assert "report.html" in result.stdout
    found = read(tmp_path / "summary.json")
    assert len(found["dropped"]["attention"]) == 10
    fidelity = found["fidelity"]
    assert fidelity["plan"]["kl"] < fidelity["last"]["kl"]
    again = skimp("inspect", out / "model", "--json", "again.json")
    assert again.exit_code == 0
    planned = read(out / "apply.json")["planned"]["parameters"]
    assert read(tmp_path / "again.json")["model"]["parameters"] == planned
