"""Ask an engine, in its own interpreter, what an exported model says.

A check's script reads a *job* from standard input, one JSON object:

    model    path of what the engine loads
    form     the number format that it was written in
    prompts  lists of token ids
    new      tokens to decode after each, greedily, end-of-text tokens like any other
    logits   whether logits are wanted
    texts    texts to divide into tokens, special ones read as such; [] unless the check tells them
    answer   the file to write the answer to
    scratch  an empty folder for arrays

and writes its *answer*, one JSON object, to that file (or as the last line of standard output):

    engine   name and version
    tokens   a list of the new token ids for each prompt
    logits   null, or one of
             - the path of an .npy file, or a list of lists: [prompts, vocabulary], what the model
               says after each prompt's last token;
             - a list of paths of .npy files, one a prompt, each [tokens, vocabulary]: after every
               token of the prompt;
             - {"ids": FILE, "values": FILE}, .npy files [prompts, K]: the logits of K tokens only
    normalised  true where they are log-probabilities
    texts    the token ids of each of the job's texts, with those that stand around any text
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skimp.errors import ExportError
from skimp.export.target import Check

_HERE = Path(__file__).parent
_ERROR = re.compile(r"\b\w*(Error|Exception): ")
# Scripts bear their engines' names, which run as files would hide what they import.
_RUN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


@dataclass(frozen=True)
class Logits:
    """What an engine says after the last tokens of one prompt: `values` [T, K] for tokens `ids`.

    `ids` [T, K], or None where K is the whole vocabulary. The rows are those after the prompt's
    last T tokens.
    """

    values: np.ndarray
    ids: np.ndarray | None = None


@dataclass(frozen=True)
class Answer:
    """`tokens`: new ones for each prompt; `logits` for each prompt, or None; `texts`: token ids."""

    engine: str
    tokens: list[list[int]]
    logits: list[Logits] | None
    normalised: bool = False
    texts: tuple[list[int], ...] = ()


def ask(
    check: Check,
    model: Path,
    folder: Path,
    form: str,
    prompts: Sequence[Sequence[int]],
    new: int,
    *,
    texts: Sequence[str] = (),
    python: Path | None = None,
) -> Answer:
    """Run the check's script and read its answer.

    Args:
        model: what the engine loads.
        folder: stands for `{folder}` in the check's environment variables.
        texts: to be divided into tokens; the check must tell "texts".
        python: the engine's interpreter; this one by default.

    Raises:
        ExportError: no such interpreter, the engine is not installed in it, it fails, or its answer
            is not what was asked for.
    """
    interpreter = str(Path(python).expanduser().absolute() if python else sys.executable)
    environment = {**os.environ, **_fill_in(check.environment, folder)}
    _require(check, interpreter, environment)
    with tempfile.TemporaryDirectory(prefix="skimp-check.") as scratch:
        answer = Path(scratch) / "answer.json"
        job = {
            "model": str(model.absolute()),
            "form": form,
            "prompts": [list(map(int, prompt)) for prompt in prompts],
            "new": new,
            "logits": "logits" in check.tells,
            "texts": list(texts),
            "answer": str(answer),
            "scratch": scratch,
        }
        words = [interpreter, "-c", _RUN, str(_script(check))]
        done = _run(words, environment, json.dumps(job), scratch)
        if done.returncode:
            raise ExportError(
                f"--verify: {check.module} failed on {model} ({_last_words(done.stderr)})."
            )
        text = answer.read_text() if answer.is_file() else _last_line(done.stdout)
        return read(check, text, prompts, new)


def _fill_in(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    place = str(folder.absolute())
    return {key: value.replace("{folder}", place) for key, value in environment.items()}


def _require(check: Check, interpreter: str, environment: Mapping[str, str]) -> None:
    # A package named by a dotted path is looked up by its root: finding a submodule imports it.
    root = check.module.partition(".")[0]
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({root!r}) is None)"
    if _run([interpreter, "-c", code], environment).returncode:
        raise ExportError(
            f"--verify: {interpreter} has no module {check.module}; install it "
            f"(`{check.install}`), or name the engine's interpreter by --engine-python."
        )


def _script(check: Check) -> Path:
    direct = _HERE / check.script
    return direct if direct.is_file() else _HERE / "checks" / check.script


def _run(
    words: list[str], environment: Mapping[str, str], text: str = "", folder: str | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            input=text,
            env=dict(environment),
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ExportError(
            f"--engine-python: {words[0]} cannot be run ({error.strerror or error}); give the path "
            "of a Python interpreter."
        ) from None


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # Bars and farewells may follow the error.
    errors = [line for line in lines if _ERROR.search(line)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _last_line(stdout: str) -> str:
    lines = [line for line in stdout.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def read(check: Check, text: str, prompts: Sequence[Sequence[int]], new: int) -> Answer:
    """Read an answer; ExportError if it is not one to this job."""
    try:
        data = json.loads(text)
        tokens = [[int(token) for token in row] for row in data["tokens"]]
        if len(tokens) != len(prompts) or any(len(row) != new for row in tokens):
            raise ValueError(f"it gave {[len(row) for row in tokens]} tokens, not {new} a prompt")
        logits = _logits(data.get("logits"), len(prompts))
        texts = tuple([int(token) for token in row] for row in data.get("texts") or ())
        engine, normalised = str(data["engine"]), bool(data.get("normalised"))
        return Answer(engine, tokens, logits, normalised, texts)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ExportError(
            f"--verify: the answer of {check.script} is not one ({type(error).__name__}: {error})."
        ) from None


def _logits(found: Any, count: int) -> list[Logits] | None:
    if found is None:
        return None
    if isinstance(found, Mapping):
        values, ids = _load(found["values"]), _load(found["ids"])
        if values.shape != ids.shape or len(values) != count:
            raise ValueError(f"logits of shape {values.shape}, ids of shape {ids.shape}")
        return [Logits(value[None], each[None]) for value, each in zip(values, ids, strict=True)]
    if isinstance(found, str):
        found = _load(found)
    rows = [_load(row) if isinstance(row, str) else np.asarray(row, np.float32) for row in found]
    if len(rows) != count:
        raise ValueError(f"logits for {len(rows)} prompts, not {count}")
    return [Logits(row if row.ndim == 2 else row[None]) for row in rows]


def _load(path: str) -> np.ndarray:
    # Never a pickle: the file comes from another process.
    with Path(path).open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
