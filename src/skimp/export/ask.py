"""Ask an engine, in its own interpreter, what exported models say.

A check's script reads *jobs* from standard input, each a line of JSON, and does them in turn:

    model    path of what the engine loads
    form     the number format that it was written in
    prompts  lists of token ids
    new      tokens to decode after each, greedily, end-of-text tokens like any other
    logits   whether logits are wanted
    texts    texts to divide into tokens, special ones read as such; [] unless the check tells them
    answer   the file to write the answer to
    scratch  an empty folder for arrays

and writes each job's *answer*, one JSON object, to that file:

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

Engines take long to start, so one process is given many jobs. A script that fails ends; those jobs
that it leaves over are given to a new one.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skimp.errors import ExportError
from skimp.export.interpreter import Interpreter
from skimp.export.target import Check

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Question:
    """What to ask of one exported model.

    `model`: what the engine loads. `texts`: to be divided into tokens; the check must tell "texts".
    """

    model: Path
    form: str
    prompts: Sequence[Sequence[int]]
    new: int
    texts: Sequence[str] = ()


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


def ask(check: Check, question: Question, *, python: Path | None = None) -> Answer:
    """Ask about one model.

    Args:
        python: the engine's interpreter; this one by default.

    Raises:
        ExportError: no such interpreter, the engine is not installed in it, it fails, or its answer
            is not what was asked for.
    """
    (found,) = ask_all(check, [question], python=python)
    if isinstance(found, ExportError):
        raise found
    return found


def ask_all(
    check: Check, questions: Sequence[Question], *, python: Path | None = None
) -> Iterator[Answer | ExportError]:
    """The answers in order, from as few processes as may be; an error for a model that fails.

    Raises:
        ExportError: no such interpreter, or the engine is not installed in it.
    """
    interpreter = Interpreter.of(python, **check.environment)
    if not interpreter.has(check.module):
        raise ExportError(
            f"--verify: {interpreter.path} has no module {check.module}; install it "
            f"(`{check.install}`), or name the engine's interpreter by --engine-python."
        )
    left = list(questions)
    while left:
        with tempfile.TemporaryDirectory(prefix="skimp-check.") as scratch:
            folders = [Path(scratch) / str(number) for number in range(len(left))]
            for folder in folders:
                folder.mkdir()
            jobs = "".join(map(_job, left, folders, [check] * len(left)))
            done = interpreter.run(_script(check), jobs, scratch)
            for folder in folders:
                path = folder / _ANSWER
                if done.status and not path.is_file():
                    yield ExportError(
                        f"--verify: {check.module} failed on {left[0].model} ({done.last_words})."
                    )
                    del left[0]
                    break  # it did none of the others
                yield _read_file(check, path, left.pop(0))


_ANSWER = "answer.json"


def _job(question: Question, folder: Path, check: Check) -> str:
    job = {
        "model": str(question.model.absolute()),
        "form": question.form,
        "prompts": [list(map(int, prompt)) for prompt in question.prompts],
        "new": question.new,
        "logits": "logits" in check.tells,
        "texts": list(question.texts),
        "answer": str(folder / _ANSWER),
        "scratch": str(folder),
    }
    return json.dumps(job) + "\n"


def _script(check: Check) -> Path:
    direct = _HERE / check.script
    return direct if direct.is_file() else _HERE / "checks" / check.script


def _read_file(check: Check, path: Path, question: Question) -> Answer | ExportError:
    try:
        text = path.read_text() if path.is_file() else ""
        return read(check, text, question.prompts, question.new)
    except ExportError as error:
        return error


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
