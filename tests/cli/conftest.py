"""A tiny model folder with a tokenizer, and a way to run the command line on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from skimp.cli.main import app

TEXT = (
    "The river runs past the mill and under the old bridge, where the children fish for trout. "
    "In the evening the lamps are lit one by one, and the town grows quiet.\n"
    "Nobody remembers who built the tower; it has always stood on the hill above the harbour. "
)
Skimp = Callable[..., Result]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer: every text has tokens, and they give it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>"
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of four layers with random weights, saved as users have it."""
    path = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 20)
    return path


@pytest.fixture
def skimp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Skimp:
    """Run `skimp` with these words in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKIMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("SKIMP_DEBUG", raising=False)

    def run(*words: str | Path, code: int = 0, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        assert result.exit_code == code, result.output
        if code:
            assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def zero_plan(skimp: Skimp, folder: Path, tmp_path: Path) -> Path:
    """A plan without attention in layers 1 and 2, nothing in their place."""
    skimp("plan", folder, "--attention", "1,2", "--fill", "zero", "--out", "plan.yaml")
    return tmp_path / "plan.yaml"


def complaint(result: Result) -> str:
    """The one line that an error is reported with."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("skimp: error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0].removeprefix("skimp: error: ")


def read(path: Path) -> dict[str, Any]:
    """A JSON document, refusing what JSON does not know (NaN, Infinity)."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)
