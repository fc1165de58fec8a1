"""An anatomy says what is really there, for every family."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.families import SAMPLES, WINDOW, build, listed
from transformers import AutoModelForCausalLM

from skimp.models.anatomy import Anatomy, Layer, Part
from skimp.models.discovery import discover
from skimp.models.families import FAMILIES

EVERY = pytest.mark.parametrize("name", list(SAMPLES))


def parts(anatomy: Anatomy) -> Iterator[Part]:
    """Every part, a tied head left out because its weight is the embedding's."""
    yield anatomy.embedding
    yield from anatomy.rest
    if not anatomy.tied:
        yield anatomy.head
    for layer in anatomy.layers:
        yield from layer.shared
        yield from layer.attention.parts
        yield from layer.ffn.parts


@EVERY
def test_parts_cover_every_parameter_once(name: str) -> None:
    model = build(name)
    anatomy = Anatomy.of(model)
    assert anatomy.parameters == sum(weight.numel() for weight in model.parameters())
    assert anatomy.parameters == sum(part.parameters for part in parts(anatomy))
    assert max(Counter(part.path for part in parts(anatomy)).values()) == 1
    for part in parts(anatomy):
        module = model.get_submodule(part.path)
        weights = list(module.parameters(recurse=False)) or list(module.parameters())
        assert part.shape == tuple(max(weights, key=lambda weight: weight.numel()).shape)
        assert part.parameters == sum(weight.numel() for weight in weights)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_in_memory(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype=dtype)
    anatomy = Anatomy.of(model)
    assert anatomy.element_bytes == dtype.itemsize
    assert anatomy.weight_bytes == sum(w.numel() * w.element_size() for w in model.parameters())


@EVERY
def test_roles(name: str) -> None:
    for layer in Anatomy.of(build(name)).layers:
        for part in (*layer.attention.parts, *layer.ffn.parts):
            norm = len(part.shape) == 1 or "norm" in part.path.rpartition(".")[2]
            assert part.role == ("norm" if norm else "projection"), part
        assert all(part.role == "norm" for part in layer.shared)


@EVERY
def test_dense_model(name: str) -> None:
    model = build(name)
    anatomy = Anatomy.of(model)
    config: Any = model.config
    assert anatomy.model_type == config.model_type
    assert anatomy.dense_layers == len(anatomy.layers) == config.num_hidden_layers
    assert [layer.source for layer in anatomy.layers] == list(range(anatomy.dense_layers))
    assert anatomy.hidden_size == 32
    assert anatomy.vocabulary == 97
    assert anatomy.tied == config.tie_word_embeddings
    assert len(list(anatomy.sublayers())) == 2 * anatomy.dense_layers
    kinds = [sublayer.kind for _, sublayer in anatomy.sublayers()]
    assert kinds == ["attention", "ffn"] * anatomy.dense_layers


@EVERY
def test_holds_no_tensor(name: str) -> None:
    def walk(value: Any) -> Iterator[Any]:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = [getattr(value, each.name) for each in dataclasses.fields(value)]
        if isinstance(value, (list, tuple)):
            for each in value:
                yield from walk(each)
        else:
            yield value

    plain = (int, float, str, bool, type(None))
    assert all(isinstance(leaf, plain) for leaf in walk(Anatomy.of(build(name))))


@pytest.mark.parametrize("name", listed())
def test_without_weights(name: str) -> None:
    """A model on the meta device, of any size, costs nothing to look at."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SAMPLES[name].config(), dtype=torch.float32)
    found = dataclasses.replace(Anatomy.of(model), fingerprint="", tied=True)
    assert found == dataclasses.replace(Anatomy.of(build(name)), fingerprint="", tied=True)


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("llama", [None] * 4),
        ("mistral", [WINDOW] * 4),
        ("qwen2", [None, WINDOW] * 2),
        ("qwen3", [None, WINDOW, WINDOW, None]),
        ("gemma2", [WINDOW, None] * 2),
        ("gemma3_text", [WINDOW] * 5 + [None]),
        ("phi3", [None] * 4),
        ("gpt2", [None] * 4),
        ("cohere2", [WINDOW, None] * 2),
        ("exaone4", [WINDOW, None] * 2),
        ("gpt_oss", [WINDOW, None] * 2),
    ],
)
def test_windows(name: str, windows: list[int | None]) -> None:
    assert [layer.attention.window for layer in Anatomy.of(build(name)).layers] == windows


@pytest.mark.parametrize(
    ("name", "heads", "kv_heads", "head_dim", "kv_elements"),
    [
        ("llama", 4, 2, 8, 32),
        ("qwen3", 4, 2, 12, 48),
        ("gpt2", 4, 4, 8, 64),
        ("falcon-7b", 4, 1, 8, 16),
        ("falcon-alibi", 4, 4, 8, 64),
        ("falcon-40b", 4, 4, 8, 64),  # cached after they are repeated
        ("deepseek_v3", 4, 4, 10, 20),  # keys of 12 and values of 8 from a latent of 16 + 4
    ],
)
def test_heads(name: str, heads: int, kv_heads: int, head_dim: int, kv_elements: int) -> None:
    attention = Anatomy.of(build(name)).layers[1].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (heads, kv_heads, head_dim)
    assert attention.kv_elements == kv_elements


# --- mixtures of experts ------------------------------------------------------------------------


def ffn_bytes(name: str, layer: int) -> tuple[int, int, float]:
    """Routed bytes, other bytes and what the anatomy says a token reads."""
    model = build(name)
    block = SAMPLES[name].blocks(model)[layer]
    routed = sum(w.numel() for w in block.mlp.parameters() if w.dim() == 3) * 4
    ffn = Anatomy.of(model).layers[layer].ffn
    return routed, ffn.bytes - routed, ffn.active_bytes


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"])
def test_token_reads_only_its_experts(name: str) -> None:
    routed, rest, active = ffn_bytes(name, 0)
    assert routed > rest > 0
    assert active == pytest.approx(rest + routed * 2 / 4)


def test_experts_under_another_name() -> None:
    """DeepSeek's config counts `n_routed_experts`; its shared expert is always read."""
    routed, rest, active = ffn_bytes("deepseek_v3", 2)
    assert active == pytest.approx(rest + routed * 2 / 4)


@pytest.mark.parametrize(("name", "layer"), [("llama", 0), ("deepseek_v3", 0), ("qwen2_moe", 2)])
def test_dense_ffn_is_read_whole(name: str, layer: int) -> None:
    ffn = Anatomy.of(build(name)).layers[layer].ffn
    assert ffn.active_share == 1
    assert ffn.active_bytes == ffn.bytes


# --- arithmetic ---------------------------------------------------------------------------------


def test_tied_head_counts_once() -> None:
    tied, free = Anatomy.of(build("llama-tied-biased")), Anatomy.of(build("llama"))
    assert tied.head.parameters == free.head.parameters == 97 * 32
    assert tied.parameters - tied.layer_parameters == 97 * 32 + 32
    assert free.parameters - free.layer_parameters == 2 * 97 * 32 + 32
    assert tied.weight_bytes == 4 * tied.parameters


def test_llama_by_hand() -> None:
    anatomy = Anatomy.of(build("llama"))
    layer = anatomy.layers[2]
    assert layer.attention.parameters == 32 * 32 * 2 + 32 * 16 * 2 + 32
    assert layer.ffn.parameters == 3 * 32 * 48 + 32
    assert layer.attention.flops_per_token == 2 * (32 * 32 * 2 + 32 * 16 * 2)
    assert layer.ffn.flops_per_token == 2 * 3 * 32 * 48
    assert layer.attention.score_flops == 4 * 4 * 8
    assert anatomy.kv_bytes_per_token == 4 * (2 * 2 * 8) * 4
    assert anatomy.ffn_size == 48
    assert anatomy.rest[0].path == "model.norm"


def test_without_layers() -> None:
    anatomy = Anatomy.of(build("llama"))
    left = anatomy.without_layers([0, 2])
    assert [layer.source for layer in left.layers] == [1, 3]
    assert left.dense_layers == 4
    assert anatomy.parameters - left.parameters == anatomy.layer_parameters / 2
    assert len(anatomy.layers) == 4


def test_sublayer_by_kind() -> None:
    layer: Layer = Anatomy.of(build("llama")).layers[0]
    assert layer.sublayer("attention") is layer.attention
    assert layer.sublayer("ffn") is layer.ffn


# --- rows ---------------------------------------------------------------------------------------

# What a row knows and no probe can: where a constant may be folded, and heads that are repeated
# before they are cached.
_ROW_ONLY = {"kv_heads": None}


@pytest.mark.parametrize("name", [name for name in listed() if name != "opt-post-norm"])
def test_row_agrees_with_discovery(name: str) -> None:
    model = build(name)
    row = FAMILIES[model.config.model_type](model.config)
    plain = dataclasses.replace(
        row,
        attention=dataclasses.replace(row.attention, output=()),
        ffn=dataclasses.replace(row.ffn, output=()),
        **_ROW_ONLY,
    )
    assert discover(model) == plain


@pytest.mark.parametrize("name", listed())
def test_row_matches_the_tests_own_account(name: str) -> None:
    family, sample = Anatomy.of(build(name)).family, SAMPLES[name]
    for branch, site in ((family.attention, sample.attention), (family.ffn, sample.ffn)):
        assert branch.modules[0] == site.enter
        assert (branch.after or branch.modules)[-1] == site.leave
    assert family.layers == sample.layers


def test_every_row_is_tested() -> None:
    assert set(FAMILIES) == {SAMPLES[name].config().model_type for name in listed()}
