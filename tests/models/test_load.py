"""Folders and arguments: what loads, and the sentence for each thing that does not."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.models import model_files as files

from skimp.models.anatomy import Anatomy
from skimp.models.load import load
from skimp.models.reading import read_anatomy
from skimp.plan import Plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return files.write(tmp_path / "tiny")


# -- what loads


def test_a_folder_gives_the_saved_model_ready_to_run(folder: Path) -> None:
    loaded = load(str(folder), dtype="fp32")
    assert loaded.source == str(folder)
    assert loaded.plan is None
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    tokens = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(loaded.model(tokens).logits, files.llama()(tokens).logits)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(loaded.tokenizer("ab  cab")["input_ids"]) == "ab  cab"


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("f32", torch.float32),
        ("bf16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("float16", torch.float16),
    ],
)
def test_every_weight_has_the_wanted_dtype(folder: Path, dtype: str, expected: torch.dtype) -> None:
    model = load(str(folder), dtype=dtype).model
    assert {weight.dtype for weight in model.parameters()} == {expected}
    assert model.config.dtype == expected


def test_shards_load(tmp_path: Path) -> None:
    files.write(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    tokens = torch.tensor([[5, 6, 7]])
    loaded = load(str(tmp_path), dtype="fp32")
    assert torch.equal(loaded.model(tokens).logits, files.llama()(tokens).logits)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    files.write(tmp_path, files.llama(tie_word_embeddings=True))
    model = load(str(tmp_path), dtype="fp32").model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_rotary_tables_of_old_checkpoints_are_no_surplus(folder: Path) -> None:
    files.rewrite(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert load(str(folder), dtype="fp32").model.num_parameters() > 0


def test_the_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load("~/tiny", dtype="fp32").model.num_parameters() > 0


def test_a_planned_folder_brings_its_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = files.llama()
    plan = Plan.empty(_anatomy(model)).with_section("drop", {"ffn": [1]})
    plan.write(folder / "plan.yaml")
    files.edit_config(folder, skimp={"layout": {}}, model_type="skimp_llama")
    monkeypatch.setattr("skimp.models.load.load_planned", lambda *_, **__: model)
    loaded = load(str(folder), dtype="fp32")
    assert loaded.model is model
    assert not any(weight.requires_grad for weight in model.parameters())
    assert loaded.plan is not None
    assert loaded.plan.sections == {"drop": {"ffn": [1]}}
    assert loaded.tokenizer is not None


def test_what_skimp_saved_of_random_weights_needs_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    Plan.empty(_anatomy(files.llama())).write(folder / "plan.yaml")
    assert load(str(folder), dtype="fp32").tokenizer is None


def _anatomy(model: Any) -> Anatomy:
    return read_anatomy(model)


# -- arguments


def test_unknown_dtype_lists_the_known() -> None:
    message = files.refusal("random:smollm2-135m", dtype="int3")
    assert "'int3'" in message
    for name in ("auto", "float32", "bf16", "fp16"):
        assert name in message


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "cpu:0", "tpu", "", "meta"])
def test_unknown_device(device: str) -> None:
    assert f"device {device!r} is unknown" in files.refusal("random:smollm2-135m", device=device)


def test_absent_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = files.refusal("random:smollm2-135m", device="cuda")
    assert "no CUDA GPU" in message
    assert "cpu" in message


def test_absent_second_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "'cuda:3' does not exist" in files.refusal("random:smollm2-135m", device="cuda:3")


def test_absent_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "'mps' is not available" in files.refusal("random:smollm2-135m", device="mps")


# -- sources that are nothing


@pytest.mark.parametrize("source", ["", "  "])
def test_no_source(source: str) -> None:
    assert "no model source was given" in files.refusal(source)


def test_a_mistyped_word_is_told_what_a_source_can_be() -> None:
    message = files.refusal("dmeo")
    assert "'dmeo' is no model source" in message
    assert "random:SHAPE" in message


@pytest.mark.parametrize("source", ["./absent", "/no/such/place", "a/b/c", "absent.gguf"])
def test_absent_path(source: str) -> None:
    assert "does not exist" in files.refusal(source)


def test_overlong_path() -> None:
    assert "cannot be read" in files.refusal("./" + "x" * 5000)


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "notes.gguf"
    path.write_text("not weights")
    assert f"{path} is not a GGUF file" in files.refusal(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    assert "is not a GGUF file" in files.refusal(path)


def test_a_pickle_file(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x04")
    assert "pickle" in files.refusal(path)


def test_a_bare_weights_file(folder: Path) -> None:
    assert "give the folder" in files.refusal(folder / "model.safetensors")


# -- folders with something wrong


def test_empty_folder(tmp_path: Path) -> None:
    assert f"the folder {tmp_path} is empty" in files.refusal(tmp_path)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in files.refusal(folder)


def test_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "PEFT adapter" in files.refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff".encode("utf-8", "surrogateescape")])
def test_config_that_is_no_json_object(folder: Path, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "config.json").write_bytes(content)
    assert str(folder / "config.json") in files.refusal(folder)


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "has no tokenizer" in files.refusal(folder)


def test_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    assert f"the tokenizer in {folder} cannot be read" in files.refusal(folder)


# -- models that are no causal language models


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "frobnicate"}, "model_type 'frobnicate'"),
        ({"model_type": None}, "has no model_type"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is t5"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is bert"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "code of its own"),
        ({"hidden_size": "wide"}, "config.json that transformers refuses"),
    ],
)
def test_other_models(folder: Path, changes: dict[str, Any], complaint: str) -> None:
    files.edit_config(folder, **changes)
    assert complaint in files.refusal(folder)


@pytest.mark.parametrize(
    ("kind", "what"), [("bert", "an encoder"), ("roberta", "an encoder"), ("bart", "an encoder-de")]
)
def test_encoders_without_a_named_head(folder: Path, kind: str, what: str) -> None:
    files.edit_config(folder, model_type=kind, architectures=None)
    assert f"{kind}, {what}" in files.refusal(folder)


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPTNeoXConfig(
            vocab_size=99, hidden_size=32, intermediate_size=48, num_attention_heads=4
        ),
        transformers.GPT2Config(vocab_size=99, n_embd=32, n_head=4),
        transformers.OPTConfig(
            vocab_size=99, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_attention_heads=4
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_other_decoders_load(tmp_path: Path, config: Any) -> None:
    config.num_hidden_layers = 2
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    files.write(tmp_path, model)
    tokens = torch.tensor([[5, 6, 7]])
    loaded = load(str(tmp_path), dtype="fp32")
    assert torch.equal(loaded.model(tokens).logits, model(tokens).logits)


# -- manners


def test_more_than_the_memory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skimp.models.placement.available_bytes", lambda _: 1000)
    message = files.refusal(folder)
    assert "needs 0.0 GB" in message
    assert "bf16" in message


def test_nothing_is_printed_and_settings_are_put_back(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = transformers.utils.logging
    before = settings.get_verbosity(), settings.is_progress_bar_enabled(), warnings.filters[:]
    files.rewrite(folder, **{"model.norm.weight": None})
    files.refusal(folder)
    files.rewrite(folder, **{"model.norm.weight": torch.ones(32)})
    load(str(folder), dtype="fp32")
    after = settings.get_verbosity(), settings.is_progress_bar_enabled(), warnings.filters[:]
    assert after == before
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("transformers").level == before[0]
