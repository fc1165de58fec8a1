"""The analytic costs against published ceilings, hand counts and brute force."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from skimp.measure import cost
from skimp.models.anatomy import Anatomy, Part, Sublayer
from skimp.workload import Workload

_LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1-8b": ("llama", _LLAMA_3_8B),
    "qwen3-8b": (
        "qwen3",
        {
            **_LLAMA_3_8B,
            "vocab_size": 151936,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "head_dim": 128,
            "max_position_embeddings": 40960,
        },
    ),
    "llama-2-7b": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    ),
    "llama-2-13b": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
    ),
    "llama-2-70b": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
    ),
}
_TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _anatomy(kind: str, dtype: torch.dtype = torch.bfloat16, **values: Any) -> Anatomy:
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, tie_word_embeddings=values.pop("tied", False), **values)
        return Anatomy.of(AutoModelForCausalLM.from_config(config, dtype=dtype))


@cache
def _shape(name: str) -> Anatomy:
    kind, values = _SHAPES[name]
    return _anatomy(kind, **values)


def _drop(anatomy: Anatomy, kind: Any, count: int) -> Anatomy:
    """The last `count` sublayers of a kind replaced by nothing."""
    first = len(anatomy.layers) - count
    empty = Sublayer(kind, "zero", ())
    layers = tuple(
        replace(layer, **{kind: empty}) if index >= first else layer
        for index, layer in enumerate(anatomy.layers)
    )
    return replace(anatomy, layers=layers)


def _thin(anatomy: Anatomy, keep: float) -> Anatomy:
    """Every FF reads a share of its weights."""
    layers = (replace(la, ffn=replace(la.ffn, active_share=keep)) for la in anatomy.layers)
    return replace(anatomy, layers=tuple(layers))


_WORKLOADS = ["512+1", "8192+1", "32768+1", "8192+1x32"]


@pytest.mark.parametrize(
    ("name", "plan", "bounds"),
    [
        ("llama-3.1-8b", "attention", (1.10, 1.13, 1.22, 1.60)),
        ("llama-3.1-8b", "ffn", (1.60, 1.54, 1.41, 1.13)),
        ("qwen3-8b", "attention", (1.11, 1.15, 1.24, 1.63)),
        ("qwen3-8b", "ffn", (1.56, 1.50, 1.37, 1.11)),
        ("llama-2-13b", "attention", (1.20, 1.30, 1.50, 1.87)),
        ("llama-2-13b", "ffn", (1.48, 1.36, 1.19, 1.04)),
        ("llama-2-70b", "attention", (1.10, 1.11, 1.13, 1.33)),
    ],
)
def test_byte_bounds_at_true_shapes(name: str, plan: str, bounds: tuple[float, ...]) -> None:
    dense = _shape(name)
    half = len(dense.layers) // 2
    planned = _drop(dense, "attention", half) if plan == "attention" else _thin(dense, 0.5)
    found = [cost.byte_bound(dense, planned, Workload.parse(text)) for text in _WORKLOADS]
    assert [round(bound, 2) for bound in found] == list(bounds)


@pytest.mark.parametrize(
    ("name", "share_of_layer", "dropped", "ceilings", "whole"),
    [
        ("llama-2-7b", 33, (8, 11, 16), (1.09, 1.13, 1.19), 1.51),
        ("llama-2-13b", 33, (10, 13, 20), (1.09, 1.12, 1.20), 1.47),
        ("llama-3.1-8b", 19, (8, 11, 16), (1.05, 1.07, 1.10), 1.47),
    ],
)
def test_weight_ceilings_at_true_shapes(
    name: str,
    share_of_layer: int,
    dropped: tuple[int, ...],
    ceilings: tuple[float, ...],
    whole: float,
) -> None:
    dense = _shape(name)
    step = Workload(1, 1)

    def ceiling(planned: Anatomy) -> float:
        read = [cost.decode_cost(anatomy, step).weight_bytes for anatomy in (dense, planned)]
        return round(read[0] / read[1], 2)

    layer = dense.layers[0]
    share = layer.attention.bytes / (layer.attention.bytes + layer.ffn.bytes)
    assert round(100 * share) == share_of_layer
    assert [ceiling(_drop(dense, "attention", count)) for count in dropped] == list(ceilings)
    assert ceiling(_drop(_drop(dense, "attention", dropped[1]), "ffn", dropped[1])) == whole


@pytest.mark.parametrize(
    ("name", "percent"),
    [("llama-3.1-8b", 17.9), ("qwen3-8b", 20.0), ("llama-2-13b", 32.6), ("llama-2-70b", 17.6)],
)
def test_share_of_attention_in_the_weights(name: str, percent: float) -> None:
    read = cost.decode_cost(_shape(name), Workload(1, 1))
    assert round(100 * read.attention.bytes / read.weight_bytes, 1) == percent


def test_a_decode_step_by_hand() -> None:
    anatomy = _anatomy("llama", torch.float32, **_TINY)
    found = cost.decode_cost(anatomy, Workload(prompt=10, new=5, batch=3))
    attention = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 32)  # q, o; k, v; norm
    ffn = 4 * (3 * 32 * 64 + 32)
    assert found.attention.bytes == 4 * attention
    assert found.ffn.bytes == 4 * ffn
    assert found.head_bytes == 4 * 96 * 32
    assert found.embedding.bytes == 4 * 32 * 3
    assert found.other.bytes == 4 * 32  # the final norm
    cached = 10 + (5 - 1) / 2
    assert found.kv_bytes == 4 * (4 * 2 * 2 * 8 * cached) * 3
    assert found.weight_bytes + found.kv_bytes == found.bytes
    matrices = 4 * (attention - 4 * 32) / 4 + 4 * (ffn - 4 * 32) / 4 + 96 * 32
    assert found.flops == 3 * (2 * matrices + 4 * (4 * 4 * 8 * cached))


def test_a_prefill_by_hand() -> None:
    anatomy = _anatomy("llama", torch.float32, **_TINY)
    found = cost.prefill_cost(anatomy, Workload(prompt=10, new=5, batch=3))
    matrices = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    scores = 4 * (4 * 4 * 8) * (10 * 11 / 2)
    assert found.flops == 3 * (10 * 2 * matrices + 2 * 96 * 32 + scores)
    assert found.kv_bytes == cost.kv_bytes(anatomy, 10, 3)
    assert found.embedding.bytes == 4 * 32 * 30


def test_a_tied_head_is_read_once_and_resides_once() -> None:
    tied, untied = (_anatomy("llama", tied=tied, **_TINY) for tied in (True, False))
    workload = Workload(8, 4)
    assert cost.decode_cost(tied, workload) == cost.decode_cost(untied, workload)
    table = 2 * 96 * 32
    assert cost.peak_bytes(untied, workload) - cost.peak_bytes(tied, workload) == table


def test_position_tables_are_read_by_the_row() -> None:
    anatomy = _anatomy("gpt2", vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    found = cost.decode_cost(anatomy, Workload(8, 4, 5))
    assert found.embedding.bytes == 5 * 2 * 2 * 32  # token and position rows in bfloat16
    assert found.other.bytes == 2 * 2 * 32  # weight and bias of the final norm


def _moe(experts: int = 8, active: int = 2) -> Anatomy:
    return _anatomy("mixtral", **_TINY, num_local_experts=experts, num_experts_per_tok=active)


def test_one_token_reads_its_experts_and_a_large_batch_reads_all() -> None:
    anatomy = _moe()
    layer = 3 * 32 * 64 * 2
    router = 8 * 32 * 2 + 32 * 2
    one = cost.decode_cost(anatomy, Workload(4, 4, 1)).ffn.bytes
    assert one == pytest.approx(4 * (2 * layer + router))
    two = cost.decode_cost(anatomy, Workload(4, 4, 2)).ffn.bytes
    assert two == pytest.approx(4 * (8 * (1 - (6 / 8) ** 2) * layer + router))
    many = cost.decode_cost(anatomy, Workload(4, 4, 1000)).ffn.bytes
    assert many == pytest.approx(4 * (8 * layer + router))


def test_routing_costs_bytes_of_the_batch_but_flops_of_the_token() -> None:
    flops = [cost.decode_cost(_moe(), Workload(4, 4, batch)).ffn.flops for batch in (1, 7)]
    assert flops[1] == pytest.approx(7 * flops[0])


def test_a_thinned_ffn_reads_the_same_rows_for_the_whole_batch() -> None:
    thin = _thin(_anatomy("llama", **_TINY), 0.25)
    reads = {cost.decode_cost(thin, Workload(4, 4, batch)).ffn.bytes for batch in (1, 9)}
    assert len(reads) == 1


@pytest.mark.parametrize(("prompt", "new"), [(10, 1), (10, 6), (10, 7), (10, 20), (20, 5), (12, 1)])
def test_windows_cap_what_a_step_reads(prompt: int, new: int) -> None:
    anatomy = _anatomy("mistral", **_TINY, sliding_window=12)
    assert {layer.attention.window for layer in anatomy.layers} == {12}
    seen = [min(context, 12) for context in range(prompt, prompt + new)]
    per_token = cost.kv_bytes_per_token(anatomy)
    found = cost.decode_cost(anatomy, Workload(prompt, new, 2)).kv_bytes
    assert found == pytest.approx(2 * per_token * sum(seen) / new)


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 50)))
def test_causal_pairs_match_a_count(tokens: int, window: int | None) -> None:
    pairs = sum(min(i + 1, window or tokens) for i in range(tokens))
    assert cost._causal(tokens, window) == pairs


@given(st.integers(1, 40), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 60)))
def test_mean_cached_matches_a_count(prompt: int, new: int, window: int | None) -> None:
    seen = [min(context, window or context) for context in range(prompt, prompt + new)]
    assert cost._mean_cached(prompt, new, window) == pytest.approx(sum(seen) / new)


@given(
    st.sets(st.integers(0, 3)),
    st.sets(st.integers(0, 3)),
    st.builds(Workload, st.integers(1, 60), st.integers(1, 60), st.integers(1, 40)),
)
def test_leaving_out_never_costs(attention: set[int], ffn: set[int], workload: Workload) -> None:
    dense = _tiny()
    layers = [
        replace(
            layer,
            attention=Sublayer("attention", "zero", ()) if index in attention else layer.attention,
            ffn=Sublayer("ffn", "zero", ()) if index in ffn else layer.ffn,
        )
        for index, layer in enumerate(dense.layers)
    ]
    planned = replace(dense, layers=tuple(layers))
    bound = cost.byte_bound(dense, planned, workload)
    assert (bound > 1) == bool(attention | ffn)
    assert (cost.compute_bound(dense, planned, workload) > 1) == bool(attention | ffn)
    assert cost.peak_bytes(planned, workload) <= cost.peak_bytes(dense, workload)
    assert sum(cost.shares(planned, workload).values()) == pytest.approx(1)
    kept = 4 - len(attention)
    assert cost.decode_cost(planned, workload).kv_bytes == pytest.approx(
        cost.decode_cost(dense, workload).kv_bytes * kept / 4
    )


@cache
def _tiny() -> Anatomy:
    return _anatomy("llama", **_TINY)


def test_fills_are_paid_for() -> None:
    dense = _tiny()
    fill = Part("model.layers.3.self_attn.up", "fill", (32, 4), 128, 256)
    empty = _drop(dense, "attention", 1)
    last = replace(empty.layers[3], attention=Sublayer("attention", "linear:4", (fill,)))
    filled = replace(empty, layers=(*empty.layers[:3], last))
    step = Workload(8, 8)
    extra = [cost.decode_cost(a, step) for a in (empty, filled)]
    assert extra[1].bytes - extra[0].bytes == 256
    assert extra[1].flops - extra[0].flops == 256
