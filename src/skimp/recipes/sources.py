"""Where prompts and answers come from: JSON lines with a prompt and an answer each, or plain text.

A JSON lines file gives its prompts whole; one that is too long is passed over and counted. A text
file is cut into windows spread evenly over it, each a prompt and the answer that follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from skimp.errors import RecipeError
from skimp.recipes.recipe import STRICT

Count = Annotated[int, Field(strict=True, ge=1)]
LINES = ".jsonl"


@dataclass(frozen=True)
class Place:
    """Where an experiment's data are, and what its errors begin with."""

    data: Path
    where: str

    def find(self, field: str, name: str, wanted: str, *, folder: bool = False) -> Path:
        """The path of a data file or folder.

        Raises:
            RecipeError: it is not there; says what belongs there (`wanted`) and how to point
                elsewhere.
        """
        path = (self.data / name).expanduser()
        if path.is_dir() if folder else path.is_file():
            return path
        what = "folder" if folder else "file"
        raise RecipeError(
            f"{self.where}.{field}: there is no {what} {path}; put {wanted} there, or give the "
            f"folder that holds your own {name} with --data DIR."
        )


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Settings of the kinds that read prompts: the first `items` of a file.

    `prompt_tokens`: in JSON lines the longest prompt that is taken, in a text the length of all.
    `new_tokens`: the longest answer. `prompt`, `answer`: fields of a line; `between` joins the two.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    file: str
    items: Count
    new_tokens: Annotated[int, Field(strict=True, ge=2)]
    prompt_tokens: Count | None = None
    prompt: str = "prompt"
    answer: str = "answer"
    between: str = "\n"

    @property
    def lines(self) -> bool:
        """Whether the file holds JSON lines."""
        return self.file.endswith(LINES)


@dataclass(frozen=True)
class Item:
    """A prompt and its answer in tokens; `reference` is the answer's text (JSON lines only)."""

    number: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    reference: str


@dataclass(frozen=True)
class Items:
    """What was taken from a file, and how many prompts were passed over as too long."""

    found: tuple[Item, ...]
    skipped: int

    @property
    def digest(self) -> str:
        """Of all tokens and references, so of the data and of the tokenizer."""
        rows = [[item.number, item.prompt, item.answer, item.reference] for item in self.found]
        return sha256(json.dumps(rows).encode()).hexdigest()


def check(texts: Texts, place: Place) -> None:
    """Raise RecipeError unless the file is there and holds what the settings name."""
    if texts.lines:
        next(_records(texts, place), None)
        return
    _text_file(texts, place)
    if texts.prompt_tokens is None:
        raise RecipeError(
            f"{place.where}.prompt_tokens: a text file is cut into prompts; say how long."
        )


def read_items(texts: Texts, place: Place, tokenizer: Any, context: int | None) -> Items:
    """The items that the settings ask for.

    Raises:
        RecipeError: the file is missing, malformed, or has no prompt that is short enough.
    """
    check(texts, place)
    if texts.lines:
        return _from_lines(texts, place, tokenizer, context)
    return _from_text(texts, place, tokenizer, context)


def _from_lines(texts: Texts, place: Place, tokenizer: Any, context: int | None) -> Items:
    longest = min(texts.prompt_tokens or 2**62, (context or 2**62) - texts.new_tokens)
    found: list[Item] = []
    skipped = 0
    for number, (prompt, answer) in _records(texts, place):
        if len(found) == texts.items:
            break
        tokens = tokenizer(prompt, verbose=False)["input_ids"]
        follows = _continuation(tokenizer, prompt, tokens, texts.between + answer)
        if not 1 <= len(tokens) <= longest:
            skipped += 1
        elif len(follows) > 1:
            cut = tuple(follows[: texts.new_tokens])
            found.append(Item(number, tuple(tokens), cut, answer))
    if not found:
        raise RecipeError(
            f"{place.where}.file: no prompt of {texts.file} has at most {longest} tokens; raise "
            "prompt_tokens, or take a model with a longer context."
        )
    return Items(tuple(found), skipped)


def _continuation(tokenizer: Any, prompt: str, tokens: list[int], text: str) -> list[int]:
    """The tokens of `text` behind `prompt`: some tokenizers begin a text of its own otherwise."""
    whole = tokenizer(prompt + text, verbose=False)["input_ids"]
    if whole[: len(tokens)] == tokens:
        return whole[len(tokens) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _from_text(texts: Texts, place: Place, tokenizer: Any, context: int | None) -> Items:
    from skimp.measure.fidelity import windows

    assert texts.prompt_tokens is not None
    width = texts.prompt_tokens + texts.new_tokens
    if context is not None and width > context:
        raise RecipeError(
            f"{place.where}.prompt_tokens: windows of {width} tokens do not fit the model's "
            f"context of {context}."
        )
    path = _text_file(texts, place)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{place.where}.file: {path} is no UTF-8 text ({error}).") from None
    every = windows(content, tokenizer, width, 2**62)
    count = min(texts.items, len(every))
    # Neighbouring windows are about one thing: those far apart say more about the text.
    chosen = [number * len(every) // count for number in range(count)]
    found = []
    for number in chosen:
        tokens = every[number].tolist()
        cut = texts.prompt_tokens
        found.append(Item(number, tuple(tokens[:cut]), tuple(tokens[cut:]), ""))
    return Items(tuple(found), 0)


def _text_file(texts: Texts, place: Place) -> Path:
    return place.find("file", texts.file, "plain text (or JSON lines, in a .jsonl file)")


def _records(texts: Texts, place: Place) -> Iterator[tuple[int, tuple[str, str]]]:
    """Line number (from 1), prompt and answer of every line of the file."""
    fields = (texts.prompt, texts.answer)
    wanted = f"JSON lines, each with the fields {fields[0]} (the whole prompt) and {fields[1]}"
    path = place.find("file", texts.file, wanted)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            at = f"{place.where}.file: line {number} of {path}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RecipeError(f"{at} is not valid JSON ({error}).") from None
            if not isinstance(record, dict) or not all(
                isinstance(record.get(field), str) for field in fields
            ):
                raise RecipeError(
                    f"{at} lacks the text of {fields[0]} or {fields[1]}; write {wanted}, or name "
                    "its fields in the recipe with `prompt` and `answer`."
                )
            yield number, (record[fields[0]], record[fields[1]])
