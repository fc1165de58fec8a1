"""Prompts and answers from files: what is taken, what is passed over, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.kit import write_data
from tests.tiny import byte_tokenizer

from skimp.errors import RecipeError, SkimpError
from skimp.recipes.sources import Items, Place, Texts, read_items

LINES = Texts(file="pairs.jsonl", items=5, new_tokens=8)
TEXT = Texts(file="text.txt", items=4, new_tokens=6, prompt_tokens=10)


def take(folder: Path, texts: Texts, context: int | None = None) -> Items:
    write_data(folder)
    return read_items(texts, Place(folder, "r.yaml: experiments.e"), byte_tokenizer(), context)


def test_lines_give_prompts_whole_and_answers_cut(tmp_path: Path) -> None:
    found = take(tmp_path, LINES)
    assert found.skipped == 0
    assert [item.number for item in found.found] == [1, 2, 3, 4, 5]
    first, tokenizer = found.found[0], byte_tokenizer()
    assert list(first.prompt) == tokenizer("river mill")["input_ids"]
    assert list(first.answer) == tokenizer("\nriver m")["input_ids"]
    assert first.reference == "river mill old"


def test_long_prompts_are_passed_over_and_counted(tmp_path: Path) -> None:
    for found in (
        take(tmp_path, replace(LINES, prompt_tokens=20)),
        take(tmp_path, LINES, context=28),
    ):
        assert found.skipped == 1
        assert [item.number for item in found.found] == [1, 3, 4, 5, 6]
    with pytest.raises(RecipeError, match="prompt_tokens"):
        take(tmp_path, replace(LINES, prompt_tokens=2))


def test_text_is_cut_into_windows_far_apart(tmp_path: Path) -> None:
    found = take(tmp_path, TEXT)
    ids = byte_tokenizer()((tmp_path / "text.txt").read_text())["input_ids"]
    every = len(ids) // 16
    assert [item.number for item in found.found] == [n * every // 4 for n in range(4)]
    for item in found.found:
        start = item.number * 16
        assert list(item.prompt + item.answer) == ids[start : start + 16]
        assert len(item.prompt) == 10
    assert len(take(tmp_path, replace(TEXT, items=999)).found) == every


def test_the_digest_is_of_what_is_read(tmp_path: Path) -> None:
    before = take(tmp_path, LINES).digest
    assert take(tmp_path, LINES).digest == before
    assert take(tmp_path, replace(LINES, between="!")).digest != before
    assert take(tmp_path, replace(LINES, items=4)).digest != before


@pytest.mark.parametrize(
    ("texts", "context", "content", "named"),
    [
        (replace(LINES, file="no.jsonl"), None, None, "--data DIR"),
        (replace(LINES, file="no.jsonl"), None, None, "fields prompt"),
        (replace(TEXT, file="no.txt"), None, None, "experiments.e.file"),
        (replace(LINES, answer="summary"), None, None, "line 1"),
        (LINES, None, '{"prompt": "a", "answer": "b c"}\n{"prompt"', "line 2"),
        (LINES, None, '["a", "b"]', "line 1"),
        (LINES, None, '{"prompt": "a", "answer": 5}', "answer"),
        (LINES, None, "", "prompt"),
        (replace(TEXT, prompt_tokens=None), None, None, "prompt_tokens"),
        (TEXT, 12, None, "context of 12"),
        (replace(TEXT, prompt_tokens=10_000), None, None, "tokens"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, texts: Texts, context: int | None, content: Any, named: str
) -> None:
    write_data(tmp_path)
    if content is not None:
        (tmp_path / texts.file).write_text(content)
    place = Place(tmp_path, "r.yaml: experiments.e")
    with pytest.raises(SkimpError) as caught:
        read_items(texts, place, byte_tokenizer(), context)
    assert named in str(caught.value)
