"""The command: a whole run on a tiny model, and one-line errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from bench.peering import show
from tests.models import model_files as files
from typer.testing import CliRunner

from bench import peers

_SCRIPT = Path(peers.__file__)


@pytest.mark.slow
def test_a_run_from_command_to_document(tmp_path: Path) -> None:
    model = files.write(tmp_path / "tiny", files.llama(initializer_range=0.5))
    command = [sys.executable, str(_SCRIPT), "--model", str(model), "--workload", "6+8"]
    command += ["--engines", "transformers,llm-drop:1,llama.cpp", "--turn", "4"]
    command += ["--llama-python", "/no/python", "--json", str(tmp_path / "out.json")]
    place = os.environ | {"SKIMP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=place, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    first, dropped = document["engines"].values()
    assert list(document["engines"]) == ["transformers", "llm-drop:1"]
    assert first["ratio"] is None
    low, high = dropped["ratio"]["decode_interval"]
    assert 0 < low <= dropped["ratio"]["decode"] <= high
    assert first["agrees"] == document["places"] == 16
    assert [len(row["turns"]["prefills"]) for row in (first, dropped)] == [6, 6]
    assert [len(turn) for turn in first["turns"]["steps"]] == [4] * 12
    assert first["tokens_per_s"] == pytest.approx(1 / first["tpot_s"])
    assert dropped["step_bytes"] < first["step_bytes"]
    assert document["contexts"] == [6, 13]
    assert document["measured"]["bandwidth"] > 0
    assert "/no/python cannot be run" in document["missing"]["llama.cpp"]
    assert "llama-cpp-python==" in document["missing"]["llama.cpp"]
    for name in ("transformers", "llm-drop:1", "llama.cpp is left out"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "6+8x2"], "--workload: 6+8x2 has 2 sequences; give one."),
        (["--workload", "6"], "is not of the form"),
        (["--engines", "vllm"], "there is no engine 'vllm'"),
        (["--json", "/no/folder/out.json"], "--json: the folder /no/folder does not exist"),
    ],
)
def test_errors_are_one_line(options: list[str], message: str) -> None:
    app = typer.Typer()
    app.command()(peers.main)
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def _document(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "prefill_s": 0.5,
        "tokens_per_s": 20.0,
        "tpot_spread": (0.04, 0.0625),
        "roofline_share": 0.5,
        "ratio": None,
        "agrees": 16,
        "exact": True,
        "idle_cpu_share": 0.0,
    }
    ratio = {"prefill": 2.0, "prefill_interval": (1.5, 2.5)}
    ratio |= {"decode": 3.0, "decode_interval": (2.75, 3.25)}
    engines = {"transformers": row, "other": row | {"ratio": ratio} | changes}
    return {
        "model": {"source": "demo"},
        "workload": "6+8x1",
        "threads": 1,
        "places": 16,
        "engines": engines,
        "missing": {},
        "strangers_cores": 0.0,
    }


def test_the_table_shows_spread_and_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    from skimp.cli import output

    output.console().print(show.table(_document()))
    shown = capsys.readouterr().out
    for cell in ("20.0 (16.0–25.0)", "50.0%", "3.00× (2.75–3.25)", "2.00× (1.50–2.50)"):
        assert cell in shown


def test_remarks_say_what_spoils_the_figures() -> None:
    assert show.remarks(_document()) == []
    (idle,) = show.remarks(_document(idle_cpu_share=0.5))
    assert idle.startswith("other used 50.0% of a core while others were timed")
    (differs,) = show.remarks(_document(agrees=3))
    assert "other chose 3 of 16 tokens alike" in differs
    # A plan may well choose other tokens.
    assert show.remarks(_document(agrees=3, exact=False)) == []
    (busy,) = show.remarks(_document() | {"strangers_cores": 1.5})
    assert "1.50 cores" in busy
    assert show.remarks(_document() | {"strangers_cores": None}) == []
    (missing,) = show.remarks(_document() | {"missing": {"static": "no compiler"}})
    assert missing == "static is left out: no compiler."
