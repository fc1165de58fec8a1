"""The matrix of targets: every combination once, what became of it, and going on where it ended."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench import matrix
from skimp.errors import ExportError
from skimp.export.interpreter import Interpreter

APP = typer.Typer()
APP.command()(matrix.main)


def run(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    out = tmp_path / "matrix.json"
    found = CliRunner().invoke(APP, [*words, "--out", str(out)])
    assert found.exit_code == 0, found.output
    return json.loads(out.read_text())["rows"]


def test_rows_are_all_combinations() -> None:
    found = list(matrix.rows(["a"], ["p", "q"], ["transformers", "decilm"], ["f32"]))
    assert found == [
        ("a", plan, target, "f32") for plan in "pq" for target in ("transformers", "decilm")
    ]
    other = list(matrix.rows(["a"], ["p"], ["transformers"], ["q8_0"]))
    assert other == [("a", "p", "transformers", "bf16")]  # its own default


def test_tiny_models_are_not_asked_for_late_layers() -> None:
    plans = ["FF", *matrix.TRAINED]
    found = list(matrix.rows(["llama", "demo"], plans, ["gguf"], ["f32"]))
    assert [row[:2] for row in found] == [("llama", "FF"), *(("demo", plan) for plan in plans)]


@pytest.mark.slow
def test_refused_written_and_gone_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--families", "gpt2,llama", "--plans", "FF", "--targets", "decilm")
    monkeypatch.setattr(Interpreter, "has", lambda *modules: False)
    found = run(tmp_path, *words)
    assert [row["status"] for row in found] == ["refused", "no engine"]
    assert "model: a gpt2 model is not built as Llama is" in found[0]["reasons"][0]
    monkeypatch.setattr(Interpreter, "has", lambda *modules: True)
    monkeypatch.setattr(matrix, "ask_all", lambda _, asked, **__: [ExportError("it fell")])
    again = run(tmp_path, *words)
    assert again[0] == found[0]
    assert (again[1]["status"], again[1]["reasons"]) == ("failed", ["it fell"])


@pytest.mark.slow
def test_one_process_answers_about_all_plans(tmp_path: Path) -> None:
    words = ("--families", "llama", "--plans", "nothing,FF", "--targets", "transformers")
    found = run(tmp_path, *words, "--prompts", "3")
    assert [row["status"] for row in found] == ["verified"] * 2
    assert str(tmp_path) not in json.dumps(found)


def test_the_table_counts_plans_and_shows_the_worst() -> None:
    def row(plan: str, target: str, status: str, off: float | None = None) -> dict[str, Any]:
        key = dict(zip(matrix.KEYS, ("llama", plan, target, "f32"), strict=True))
        return {**key, "status": status, "max_difference": off}

    rows = [
        row("a", "decilm", "verified", 2e-5),
        row("b", "decilm", "verified", 1e-6),
        row("c", "decilm", "refused"),
        row("d", "decilm", "no such plan"),
        row("a", "gguf", "refused"),
        row("a", "vllm-plugin", "differs", 0.5),
        row("a", "openvino", "no engine"),
    ]
    head, _, line = matrix.markdown(rows).splitlines()
    assert head == "| model | format | decilm | gguf | vllm-plugin | openvino |"
    assert line == "| llama | f32 | 2 of 3, 2e-05 | refused | 0 of 1, **1 differs** | – |"
