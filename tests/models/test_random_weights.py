"""Random weights: true to the class, reproducible, and alike in every dtype."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from skimp.errors import LoadError
from skimp.models import random_weights
from skimp.models.load import load

CPU = torch.device("cpu")
COMMON = dict(vocab_size=101, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
CONFIGS: list[Any] = [
    transformers.LlamaConfig(**COMMON, intermediate_size=48, tie_word_embeddings=True),
    transformers.LlamaConfig(
        **COMMON,
        intermediate_size=48,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    transformers.MistralConfig(**COMMON, intermediate_size=48, num_key_value_heads=2),
    transformers.Qwen3Config(**COMMON, intermediate_size=48, num_key_value_heads=2, head_dim=16),
    transformers.Gemma2Config(**COMMON, intermediate_size=48, num_key_value_heads=2, head_dim=16),
    transformers.OPTConfig(**COMMON, word_embed_proj_dim=32, ffn_dim=48),
]
IDS = [f"{config.model_type}-{i}" for i, config in enumerate(CONFIGS)]


@pytest.fixture
def short_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw a short block, which serves tiny models as well and takes no time."""
    monkeypatch.setattr(random_weights, "PERIOD", 99_991)


def build(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    return random_weights.build(config, dtype=dtype, device=CPU, seed=seed).eval()


@pytest.mark.usefixtures("short_block")
@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_all_but_the_matrices_is_what_the_class_makes_it(config: Any) -> None:
    # rotary tables, norms (1, or 0 where the class adds 1) and biases; also: no tensor is missed
    expected = transformers.AutoModelForCausalLM.from_config(config)
    built = build(config)
    ours = dict(built.named_buffers()) | dict(built.named_parameters())
    theirs = dict(expected.named_buffers()) | dict(expected.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape
        assert ours[name].device.type == "cpu"
        if tensor.ndim < 2:
            assert torch.equal(ours[name], tensor), name


@pytest.mark.usefixtures("short_block")
@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_matrices_are_normal_with_unit_gain(config: Any) -> None:
    for name, weight in build(config).named_parameters():
        if weight.ndim == 2:
            scaled = weight * weight.shape[-1] ** 0.5
            assert abs(scaled.std() - 1) < 0.1, name
            assert abs(scaled.mean()) < 0.1, name
            assert torch.unique(weight, dim=0).shape == weight.shape, name


@pytest.mark.usefixtures("short_block")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_dtypes_round_the_same_values(dtype: torch.dtype) -> None:
    whole, half = build(CONFIGS[4]), build(CONFIGS[4], dtype)
    for (name, ours), theirs in zip(whole.named_parameters(), half.parameters(), strict=True):
        assert theirs.dtype == dtype
        assert torch.equal(ours.to(dtype), theirs), name
        assert torch.equal(ours.sign(), theirs.float().sign()), name


@pytest.mark.usefixtures("short_block")
def test_seeds_decide() -> None:
    first, again, other = (build(CONFIGS[0], seed=seed) for seed in (1, 1, 2))
    weights = [model.model.layers[1].mlp.up_proj.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.usefixtures("short_block")
def test_matrices_of_a_model_differ() -> None:
    layers = build(CONFIGS[0]).model.layers
    gate, up, later = layers[0].mlp.gate_proj, layers[0].mlp.up_proj, layers[1].mlp.gate_proj
    for other in (up, later):
        assert abs(torch.corrcoef(torch.stack([gate.weight, other.weight]).flatten(1))[0, 1]) < 0.2


@pytest.mark.usefixtures("short_block")
def test_a_cut_model_is_the_start_of_the_whole() -> None:
    whole = build(CONFIGS[2]).state_dict()
    config = transformers.MistralConfig(**CONFIGS[2].to_dict() | {"num_hidden_layers": 1})
    for name, weight in build(config).state_dict().items():
        assert torch.equal(weight, whole[name]), name


def test_no_matrix_repeats_a_row_beyond_the_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "PERIOD", 997)
    embedding = build(CONFIGS[0]).model.embed_tokens.weight
    assert embedding.numel() > 3 * 997
    assert torch.unique(embedding, dim=0).shape == embedding.shape


@pytest.mark.usefixtures("short_block")
def test_tied_embeddings_are_one_tensor() -> None:
    model = build(CONFIGS[0])
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "source",
    [
        "random:smollm2-135m,layers=2",
        "random:opt-1.3b,layers=1,seed=3",
        pytest.param("random:gemma-2-2b,layers=2", marks=pytest.mark.slow),
    ],
)
def test_cut_shapes_load_and_run(source: str) -> None:
    loaded = load(source, dtype="bf16")
    assert loaded.tokenizer is None
    assert loaded.plan is None
    assert not loaded.model.training
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    logits = loaded.model(torch.arange(20)[None]).logits
    assert logits.isfinite().all()
    assert logits.float().std() > 0.1


@pytest.mark.slow
def test_every_layer_of_a_deep_model_stays_finite_in_bf16() -> None:
    model = load("random:smollm2-135m", dtype="bf16").model
    states = model(torch.arange(100)[None], output_hidden_states=True).hidden_states
    for state in states:
        assert state.isfinite().all()
        assert state.float().abs().max() < 1e3


def test_the_seed_of_the_source_goes_before_the_argument() -> None:
    shape = "random:smollm2-135m,layers=1"
    named, given = load(f"{shape},seed=5", seed=1), load(shape, seed=5)
    pairs = zip(named.model.parameters(), given.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_too_large_a_model_is_told_how_many_layers_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = random_weights.scratch_bytes(torch.bfloat16)
    # Llama-2-7B: 524 MB of embedding, head and final norm, 404.8 MB a layer
    room = int(524.3e6 + 5.5 * 404.8e6) + scratch
    for module in ("load", "placement"):
        monkeypatch.setattr(f"skimp.models.{module}.available_bytes", lambda _: room)
    with pytest.raises(LoadError, match=r"5 of its 32 layers would fit \(layers=5\)"):
        load("random:llama-2-7b", dtype="bf16")


def test_too_large_a_single_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("load", "placement"):
        monkeypatch.setattr(f"skimp.models.{module}.available_bytes", lambda _: 10**6)
    with pytest.raises(LoadError, match="not even layers=1"):
        load("random:llama-2-7b", dtype="bf16")


@pytest.mark.parametrize("tied", [False, True])
def test_written_shard_by_shard_it_is_the_same_model(tmp_path: Path, tied: bool) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=tied,
    )
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "seed": 3}
    random_weights.write(config, tmp_path / "new", shard_bytes=9000, **settings)
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 2
    found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "new", dtype=torch.bfloat16
    )
    wanted = random_weights.build(config, device=torch.device("cpu"), **settings)
    for name, weight in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
