"""Counting tensors where they are."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from skimp.measure import cost, memory
from skimp.models.anatomy import Anatomy


def _model(**values: Any) -> Any:
    config = AutoConfig.for_model(
        values.pop("kind", "llama"),
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **values,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def _cache(model: Any, tokens: int, batch: int, more: int = 0) -> DynamicCache:
    with torch.inference_mode():
        ids = torch.ones(batch, tokens, dtype=torch.long)
        cache = model(input_ids=ids, use_cache=True).past_key_values
        for _ in range(more):
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("tied", [True, False])
def test_resident_bytes_agree_with_the_anatomy(tied: bool) -> None:
    model = _model(tie_word_embeddings=tied)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert memory.resident_bytes(model) == Anatomy.of(model).weight_bytes + buffers


def test_what_is_taken_out_is_not_resident() -> None:
    model = _model()
    before = memory.resident_bytes(model)
    gone = sum(p.nbytes for p in model.model.layers[1].mlp.parameters())
    model.model.layers[1].mlp = nn.Identity()
    assert gone > 0
    assert memory.resident_bytes(model) == before - gone


def test_weights_shared_under_two_names_reside_once() -> None:
    one = nn.Linear(8, 8, bias=False)
    two = nn.Linear(8, 8, bias=False)
    two.weight = nn.Parameter(one.weight.detach())  # another parameter over the same memory
    assert memory.resident_bytes(nn.Sequential(one, two)) == 8 * 8 * 4


def test_cache_bytes_agree_with_the_anatomy() -> None:
    model = _model()
    assert memory.cache_bytes(_cache(model, 10, 3)) == cost.kv_bytes(Anatomy.of(model), 10, 3)


def test_a_window_bounds_the_cache() -> None:
    model = _model(kind="mistral", sliding_window=8)
    assert memory.cache_bytes(_cache(model, 20, 2, more=3)) == cost.kv_bytes(
        Anatomy.of(model), 23, 2
    )


def test_a_view_counts_as_the_memory_it_keeps_alive() -> None:
    whole = torch.zeros(2, 100)
    assert memory.cache_bytes({"keys": whole[:, -1:], "again": [whole]}) == whole.nbytes


def test_counters_are_no_cache() -> None:
    assert memory.cache_bytes([torch.zeros(1000), "text", 3, None]) == 0


def test_the_meter_sees_the_peak_and_what_is_freed() -> None:
    with torch.inference_mode(), memory.TensorMeter(torch.device("cpu")) as meter:
        first = torch.ones(1000)
        second = first + 1
        del first
        third = second * 2
        third.view(10, 100).add_(1)  # neither a view nor writing in place takes memory
        del second, third
        torch.ones(10)
    assert meter.peak == 2 * 4000


def test_the_meter_ignores_what_was_there_before() -> None:
    before = torch.ones(1000)
    with memory.TensorMeter(torch.device("cpu")) as meter:
        before.add_(1)
        before.view(-1)
    assert meter.peak == 0


def test_the_meter_sees_a_cache_grow() -> None:
    model = _model()
    with memory.TensorMeter(torch.device("cpu")) as meter:
        cache = _cache(model, 40, 2)
    assert meter.peak >= memory.cache_bytes(cache) + 2 * 40 * 96 * 4  # and all logits
