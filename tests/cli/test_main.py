"""Help, versions, errors: what holds for every verb."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint

from skimp import __version__
from skimp.cli import inspect as inspect_verb
from skimp.errors import SkimpError

VERBS = [
    "inspect",
    "machine",
    "plan",
    "apply",
    "eval",
    "bench",
    "generate",
    "serve",
    "report",
    "run",
    "demo",
]
START = [sys.executable, "-m", "skimp.cli.main"]
SRC = Path(__file__).resolve().parents[2] / "src"


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), **extra}


def test_version(skimp: Skimp) -> None:
    assert skimp("--version").stdout == f"skimp {__version__}\n"


def test_help_names_every_verb(skimp: Skimp) -> None:
    text = skimp("--help").stdout
    assert all(f" {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_examples(skimp: Skimp, verb: str) -> None:
    assert f"skimp {verb}" in skimp(verb, "--help").stdout.partition("Examples")[2]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from skimp.cli.main import app\n"
        "try:\n    app(['plan', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'yaml', 'jinja2', 'lm_eval'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_no_verb_shows_help(skimp: Skimp) -> None:
    assert "Usage:" in skimp(code=2).output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["inspekt"], "inspect"),
        (["--bogus"], "--bogus"),
        (["inspect", "demo", "--bogus"], "--bogus"),
        (["inspect", "demo", "--threads", "0"], "--threads"),
        (["inspect", "demo", "--seed", "-1"], "--seed"),
        (["inspect", "demo", "--dtype", "int3"], "int3"),
        (["inspect", "demo", "--device", "toaster"], "toaster"),
        (["inspect", "demo", "--workload", "5x"], "5x"),
        (["inspect", "demo", "--json", "no/such/folder.json"], "--json"),
        (["inspect", "demo", "--json", "."], "--json"),
        (["inspect", "random:nothing"], "nothing"),
        (["inspect", "demo", "--plan", "nowhere.yaml"], "nowhere.yaml"),
        (["inspect", "demo", "--plan", "result.json"], "plan.yaml"),
        (["bench", "demo", "--rounds", "5"], "--rounds"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(skimp: Skimp, words: list[str], named: str) -> None:
    result = skimp(*words, code=2)
    assert named in complaint(result)
    assert result.stdout == ""


def test_a_missing_model_is_named(skimp: Skimp) -> None:
    assert "no/model" in complaint(skimp("inspect", "./no/model", code=2))


def test_debug_shows_where_an_error_is_from(skimp: Skimp, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object) -> None:
        raise SkimpError("it broke.")

    monkeypatch.setattr(inspect_verb, "read_anatomy", broken)
    assert "Traceback" not in skimp("inspect", "demo", code=2).stderr
    monkeypatch.setenv("SKIMP_DEBUG", "1")
    with pytest.raises(AssertionError, match="Traceback"):
        skimp("inspect", "demo", code=2)


def test_an_unexpected_error_asks_for_a_report(
    skimp: Skimp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(inspect_verb, "read_anatomy", broken)
    text = complaint(skimp("inspect", "demo", code=1))
    assert "RuntimeError: a bug. Please report" in text


def test_an_interrupt_is_one_line(skimp: Skimp, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_verb, "read_anatomy", interrupted)
    said = complaint(skimp("inspect", "demo", code=130))
    assert said.startswith("interrupted; ")
    assert "is on disk" not in said  # of most verbs nothing is


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_in_a_real_process(folder: Path) -> None:
    words = ["bench", str(folder), "--workload", "8+400x1", "--rounds", "10000"]
    process = subprocess.Popen(
        [*START, *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A background job may have been started with Ctrl-C ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_closed_pipe_is_quiet(folder: Path) -> None:
    process = subprocess.Popen(
        [*START, "inspect", str(folder)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.wait(timeout=300)
    assert errors == b""
