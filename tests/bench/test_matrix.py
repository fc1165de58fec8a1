"""The matrix of targets: every combination once, what became of it, and going on where it ended."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench import matrix

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


@pytest.mark.slow
def test_refused_written_and_gone_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "find_spec", lambda name: None)
    words = ("--families", "gpt2,llama", "--plans", "FF", "--targets", "decilm")
    rows = run(tmp_path, *words)
    assert [row["status"] for row in rows] == ["refused", "written"]
    assert "model: a gpt2 model is not built as Llama is" in rows[0]["reasons"][0]
    monkeypatch.setattr(matrix, "one", lambda *a, **k: {"status": "verified"})
    again = run(tmp_path, *words)
    assert again[0] == rows[0] and again[1]["status"] == "verified"
