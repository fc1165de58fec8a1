"""GGUF files: the same model comes out, nothing of the tokenizer is lost, the rest is refused."""

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import model_files as files
from tests.models.test_cache import Notes
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from skimp.errors import LoadError
from skimp.models import gguf as conversion
from skimp.models.load import load

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKIMP_CACHE", str(tmp_path / "cache"))
    return tmp_path


def refusal(path: Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(str(path), dtype="fp32")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_model_comes_out(place: Path, tied: bool) -> None:
    model = files.llama(tie_word_embeddings=tied)
    loaded = load(str(files.write_gguf(place / "m.gguf", model)), dtype="fp32")
    assert torch.equal(loaded.model(TOKENS).logits, model(TOKENS).logits)
    assert (loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight) == tied
    assert not hasattr(loaded.model.config, "quantization_config")
    assert loaded.model.config.rms_norm_eps == 1e-5


def test_the_tokenizer_is_what_the_metadata_says(place: Path) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama())
    tokenizer: Any = load(str(path)).tokenizer
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.model_max_length == 128
    assert tokenizer.apply_chat_template([{"content": "ab"}], tokenize=False) == "<|im_start|>ab"
    assert tokenizer("<|im_end|>ab")["input_ids"] == [2, files.vocabulary()["ab"]]
    assert tokenizer.decode(tokenizer("é ab\t12")["input_ids"]) == "é ab\t12"


def test_neighbours_of_the_file_do_not_matter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(place / "other", files.llama(seed=3))
    files.write_gguf(place / "other" / "m.gguf", files.llama())
    monkeypatch.chdir(place / "other")
    loaded = load("m.gguf", dtype="fp32")
    assert torch.equal(loaded.model(TOKENS).logits, files.llama()(TOKENS).logits)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.eos_token == "<|im_end|>"


def test_digits_stand_alone_where_the_file_says_so(place: Path) -> None:
    model = files.llama()
    smollm = load(str(files.write_gguf(place / "a.gguf", model, pre="smollm"))).tokenizer
    gpt2 = load(str(files.write_gguf(place / "b.gguf", model, pre="gpt-2"))).tokenizer
    assert smollm is not None
    assert gpt2 is not None
    assert smollm.tokenize("ab  1") == ["ab", "ĠĠ", "1"]
    assert gpt2.tokenize("ab  1") == ["ab", "Ġ", "Ġ", "1"]


def test_unknown_splitting_is_noted(place: Path) -> None:
    notes = Notes()
    load(str(files.write_gguf(place / "m.gguf", files.llama(), pre="novel")), progress=notes)
    assert any("novel" in line for line in notes.lines)


def test_every_token_that_ends_an_answer_is_kept(place: Path) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama(), tokenizer__ggml__eot_token_id=0)
    model = load(str(path)).model
    assert model.config.eos_token_id == [2, 0]
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == [2, 0]


def _divisors(model: Any) -> np.ndarray:
    width = model.config.hidden_size // model.config.num_attention_heads
    theta = model.config.rope_parameters["rope_theta"]
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
    return (theta ** -(torch.arange(0, width, 2) / width) / scaled).numpy()


def test_the_rotary_scaling_of_llama_3_is_restored(place: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = files.llama(rope_parameters=scaling)
    table = {"rope_freqs.weight": _divisors(model)}
    loaded = load(str(files.write_gguf(place / "m.gguf", model, tensors=table)), dtype="fp32")
    assert loaded.model.config.rope_parameters == scaling
    assert torch.equal(loaded.model(TOKENS).logits, model(TOKENS).logits)


def test_other_rotary_scaling_is_refused(place: Path) -> None:
    model = files.llama()
    odd = {"rope_freqs.weight": np.linspace(1, 3, 4)}
    assert "not Llama 3's" in refusal(files.write_gguf(place / "a.gguf", model, tensors=odd))
    yarn = files.write_gguf(place / "b.gguf", model, llama__rope__scaling__type="yarn")
    assert "(yarn)" in refusal(yarn)


def test_weights_that_the_conversion_would_drop_are_refused(place: Path) -> None:
    biases = {"blk.0.attn_q.bias": np.ones(32)}
    path = files.write_gguf(place / "m.gguf", files.llama(), tensors=biases)
    assert "weights but transformers' llama takes" in refusal(path)


def test_unknown_architecture(place: Path) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama())
    content = path.read_bytes().replace(
        struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"lxama", 1
    )
    path.write_bytes(content)
    message = refusal(path)
    assert "lxama" in message
    assert "safetensors" in message


@pytest.mark.parametrize("keep", [4, 20, 200, 5000])
def test_truncated_header(place: Path, keep: int) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama())
    path.write_bytes(path.read_bytes()[:keep])
    assert "truncated" in refusal(path)


def test_truncated_data(place: Path) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama())
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is truncated" in refusal(path)


def test_version_1(place: Path) -> None:
    path = place / "old.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert "GGUF version 1" in refusal(path)


def test_absent_packages_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install gguf accelerate" in refusal(path)


def test_no_room_on_the_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama())
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert "SKIMP_CACHE" in refusal(path)


def test_conversion_happens_once_for_the_same_content(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama())
    notes = Notes()
    load(str(path), progress=notes)
    copy = place / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    load(str(path), progress=notes)
    load(str(copy), progress=notes)
    assert len(notes.lines) == 1
    load(str(files.write_gguf(path, files.llama(seed=1))), progress=notes)
    assert len(notes.lines) == 2  # another content under the same path
    assert capfd.readouterr() == ("", "")


def test_the_cache_records_the_source(place: Path) -> None:
    path = files.write_gguf(place / "m.gguf", files.llama())
    load(str(path))
    (marker,) = (place / "cache" / "gguf").glob("*/skimp-cache.json")
    source = json.loads(marker.read_text())["source"]
    assert source["file"] == "m.gguf"
    assert source["bytes"] == path.stat().st_size
    assert source["sha256"].startswith(marker.parent.name)
