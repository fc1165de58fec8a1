"""`skimp demo` on the real demo model."""

from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint, read

from skimp.cli import demo as demo_verb


def test_a_place_that_cannot_be_written(skimp: Skimp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--out" in complaint(skimp("demo", "--out", "file", code=2))


def test_every_stage_on_a_tiny_model(
    skimp: Skimp, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MODEL": str(folder),
        "DROP": 2,
        "FILL": "linear:4",
        "QUICK_TEXT": 1000,
    }.items():
        monkeypatch.setattr(demo_verb, name, value)
    for _ in range(2):  # a second time over what the first one left
        result = skimp("demo", "--quick", "--json", "summary.json")
    check_folder(tmp_path / "demo")
    assert "report.html" in result.stdout
    found = read(tmp_path / "summary.json")
    assert len(found["dropped"]["attention"]) == 2
    assert set(found["fidelity"]) == {"plan", "last"}
    names = {"plan": "plan.json", "eval": "eval.json", "bench": "bench.json"}
    words = [word for verb, file in names.items() for word in (f"--{verb}", f"demo/{file}")]
    words += ["--samples", "demo/samples.json", "--compare", "last=demo/eval_last.json"]
    skimp("report", *words, "--out", "again.html")
    assert "last" in (tmp_path / "again.html").read_text()


def check_folder(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    verbs = ("inspect", "plan", "eval", "eval_last", "bench", "apply", "samples")
    assert names >= {f"{verb}.json" for verb in verbs}
    assert names >= {"plan.yaml", "plan.safetensors", "last.yaml", "model", "report.html"}


@pytest.mark.demo
@pytest.mark.slow
def test_quick(skimp: Skimp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKIMP_CACHE")  # unpacking the model again would take minutes
    result = skimp("demo", "--quick", "--json", "summary.json")
    out = tmp_path / "demo"
    check_folder(out)
    assert "report.html" in result.stdout
    found = read(tmp_path / "summary.json")
    assert len(found["dropped"]["attention"]) == 10
    fidelity = found["fidelity"]
    assert fidelity["plan"]["kl"] < fidelity["last"]["kl"]
    again = skimp("inspect", out / "model", "--json", "again.json")
    assert again.exit_code == 0
    planned = read(out / "apply.json")["planned"]["parameters"]
    assert read(tmp_path / "again.json")["model"]["parameters"] == planned
