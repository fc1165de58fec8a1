"""`skimp generate`, its loop, and how tokens become text."""

from pathlib import Path

import pytest
import torch
from tests.cli.conftest import Skimp, complaint, make_tokenizer, read

TOKENIZER = make_tokenizer()


def test_greedy_equals_the_model_s_own(skimp: Skimp, folder: Path) -> None:
    from skimp.models.load import load

    loaded = load(str(folder), dtype="float32")
    ids = TOKENIZER("The river runs")["input_ids"]
    own = skimp(
        "generate", folder, "The river runs", "--max-new-tokens", "12", "--dtype", "float32"
    ).stdout
    reference = loaded.model.generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, len(ids) :].tolist()
    assert own == TOKENIZER.decode(reference, skip_special_tokens=True) + "\n"


def test_a_stop_string_ends_the_text(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    words = ("--max-new-tokens", "20", "--json", "g.json")
    whole = skimp("generate", folder, "The river", *words).stdout.removesuffix("\n")
    stop = whole[5:7]
    cut = skimp("generate", folder, "The river", *words, "--stop", stop).stdout.removesuffix("\n")
    assert cut == whole[: whole.index(stop)]
    assert read(tmp_path / "g.json")["stopped"] == "stop"


@pytest.mark.parametrize("words", [[], ["--temperature", "1.5", "--top-p", "0.9", "--top-k", "40"]])
def test_the_text_is_all_of_standard_output(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path, words: list[str]
) -> None:
    words = [*words, "--plan", str(zero_plan), "--max-new-tokens", "9", "--json", "g.json"]
    result = skimp("generate", folder, "The river", *words)
    found = read(tmp_path / "g.json")
    assert result.stdout == found["text"] + "\n"
    assert found["tokens"]["new"] <= 9
    assert found["stopped"] in ("length", "end")
    assert "tokens" in result.stderr
    assert skimp("generate", folder, "The river", *words).stdout == result.stdout


def test_the_prompt_may_come_from_standard_input(skimp: Skimp, folder: Path) -> None:
    words = ("generate", folder, "-", "--max-new-tokens", "3")
    assert (
        skimp(*words, stdin="The river").stdout
        == skimp("generate", folder, "The river", "--max-new-tokens", "3").stdout
    )


def test_the_context_may_run_full(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    prompt = "The river runs. " * 38
    used = len(TOKENIZER(prompt)["input_ids"])
    assert 400 < used < 512
    words = ("--max-new-tokens", "400", "--temperature", "5", "--json", "g.json")
    skimp("generate", folder, prompt, *words)
    found = read(tmp_path / "g.json")
    assert found["tokens"]["prompt"] + found["tokens"]["new"] <= 512
    assert "context" in complaint(skimp("generate", folder, prompt * 2, *words, code=2))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([""], "PROMPT"),
        ([" \n"], "PROMPT"),
        (["a", "--top-p", "0.5"], "--temperature"),
        (["a", "--temperature", "1", "--top-p", "1.5"], "--top-p"),
        (["a", "--min-p", "0.5"], "--temperature"),
        (["a", "--temperature", "1", "--min-p", "-1"], "--min-p"),
        (["a", "--repetition-penalty", "0"], "--repetition-penalty"),
        (["a", "--stop", ""], "--stop"),
        (["a", "--temperature", "nan"], "--temperature"),
        (["a", "--temperature", "-1"], "--temperature"),
        (["a", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["a", "--chat"], "--chat"),
    ],
)
def test_mistakes_are_named(skimp: Skimp, folder: Path, words: list[str], named: str) -> None:
    assert named in complaint(skimp("generate", folder, *words, code=2))


def test_random_weights_have_no_words(skimp: Skimp) -> None:
    words = ("generate", "random:smollm2-135m,layers=1", "a")
    assert "tokenizer" in complaint(skimp(*words, code=2))


def test_tokens_may_leave_early(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    from skimp.models.anatomy import Anatomy
    from skimp.models.load import load
    from skimp.plan import Plan

    section = {"probe": [0], "rule": "threshold", "translator": "plain", "threshold": -1.0}
    anatomy = Anatomy.of(load(str(folder)).model)
    plan = Plan.empty(anatomy).with_section("exit", section)
    plan.write(tmp_path / "exit.yaml")
    words = ("--max-new-tokens", "6", "--json", "g.json", "--exit", tmp_path / "exit.yaml")
    result = skimp("generate", folder, "The river", *words)
    found = read(tmp_path / "g.json")
    assert found["depths"] == [1] * (found["tokens"]["new"] - 1)
    assert "of the layers were left out" in result.stderr
