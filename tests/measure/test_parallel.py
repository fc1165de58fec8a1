"""Tensor parallelism against figures worked out by hand."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from skimp.errors import SkimpError
from skimp.measure import cost, oracle, parallel
from skimp.measure.machine import Machine
from skimp.measure.oracle import Overheads
from skimp.measure.parallel import Link, split
from skimp.models.anatomy import Anatomy, Part, Sublayer
from skimp.workload import Workload

NONE = Overheads()
LAYERS, WIDTH, INNER, VOCABULARY = 4, 32, 64, 96
HEADS, KV_HEADS, HEAD = 4, 2, 8
WORK = Workload(100, 11, 2)


@cache
def anatomy(kind: str = "llama", **values: Any) -> Anatomy:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, **(settings | values))
        return Anatomy.of(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def machine() -> Machine:
    return Machine("cpu", "a cpu", 2, 1, 1 << 34, "2", "bfloat16", 1e9, 1e10, 1e-6)


def without(dense: Anatomy, layer: int, kind: str, parts: tuple[Part, ...] = ()) -> Anatomy:
    state = "linear:4" if parts else "zero"
    gone = {kind: Sublayer(kind, state, parts)}  # pyright: ignore[reportArgumentType]
    layers = [replace(la, **gone) if la.source == layer else la for la in dense.layers]
    return replace(dense, layers=tuple(layers))


def test_two_devices_hold_half_of_all_but_the_norms() -> None:
    attention = WIDTH * HEAD * (2 * HEADS + 2 * KV_HEADS)
    norms = (2 * LAYERS + 1) * WIDTH
    whole = LAYERS * (attention + 3 * WIDTH * INNER) + 2 * VOCABULARY * WIDTH
    assert anatomy().weight_bytes == 2 * (whole + norms)
    assert split(anatomy(), 2).weight_bytes == 2 * (whole // 2 + norms)
    assert split(anatomy(), 2).kv_bytes_per_token == anatomy().kv_bytes_per_token / 2


def test_kv_heads_are_replicated_where_there_are_fewer() -> None:
    share = split(anatomy(), 4).layers[0].attention
    assert (share.heads, share.kv_heads) == (1, 1)
    # One head of queries, one of keys, one of values, one of the output map, and the norm.
    assert share.parameters == 4 * WIDTH * HEAD + WIDTH
    assert split(anatomy(), 4).kv_bytes_per_token == anatomy().kv_bytes_per_token / KV_HEADS
    assert share.score_flops == anatomy().layers[0].attention.score_flops / 4


def test_square_maps_are_told_apart() -> None:
    """Here hidden size = KV heads × width, so keys are as square as queries elsewhere."""
    wide = anatomy("qwen3", head_dim=16, attention_bias=True)
    share = split(wide, 4).layers[0].attention
    maps = 4 * WIDTH * 16
    # Biases are dealt out with their matrix; norms of queries and keys stand on every device.
    assert share.parameters == maps + 3 * 16 + WIDTH // 4 + WIDTH + 2 * 16


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "phi3"])
def test_fused_maps_are_split_as_what_they_hold(kind: str) -> None:
    names: dict[str, Any] = {"num_key_value_heads": HEADS}
    names |= {"n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS} if kind == "gpt2" else {}
    dense = anatomy(kind, pad_token_id=0, **names)

    def maps(part: Anatomy) -> int:
        parts = [p for _, s in part.sublayers() for p in s.parts if p.role == "projection"]
        return sum(p.shape[0] * p.shape[1] for p in parts)

    assert maps(split(dense, 2)) == maps(dense) / 2


def test_an_uneven_width_counts_as_the_widest_share() -> None:
    share = split(anatomy(vocab_size=97, intermediate_size=65), 2)
    assert share.embedding.shape == share.head.shape == (49, WIDTH)
    assert share.layers[0].ffn.parameters == 3 * 33 * WIDTH + WIDTH


def test_experts_are_split_and_their_router_is_not() -> None:
    dense = anatomy("mixtral", num_local_experts=8, num_experts_per_tok=2)
    share = split(dense, 2).layers[0].ffn
    assert share.parameters == 8 * 3 * WIDTH * INNER // 2 + 8 * WIDTH + WIDTH
    active = 2 * 3 * WIDTH * INNER // 2 + 8 * WIDTH + WIDTH
    assert share.active_bytes == pytest.approx(2 * active)


def test_fills_stand_on_every_device() -> None:
    fill = tuple(Part(f"fill.{n}", "fill", (WIDTH, 4), 4 * WIDTH, 8 * WIDTH) for n in range(2))
    planned = without(anatomy(), 1, "attention", fill)
    assert split(planned, 2).layers[1].attention == planned.layers[1].attention


def test_a_sublayer_left_out_saves_its_all_reduce() -> None:
    planned = without(without(anatomy(), 1, "attention"), 2, "ffn")
    assert parallel.all_reduces(anatomy()) == 2 * LAYERS + 1
    assert parallel.all_reduces(planned) == 2 * LAYERS - 1
    link = Link(bandwidth=1e6, latency=1e-3)
    times = [parallel.link_seconds(a, 2, 2, 2, link) for a in (anatomy(), planned)]
    once = 1e-3 + 2 * WIDTH * 2 / 1e6  # on two devices a ring sends 2·1/2 of the states
    gather = 1e-3 + 2 * VOCABULARY * 2 / 2 / 1e6
    assert times == pytest.approx([9 * once + gather, 7 * once + gather])


def test_a_step_takes_its_share_and_the_exchanges() -> None:
    link = Link(bandwidth=1e6, latency=1e-3)
    found = parallel.predict(
        anatomy(), WORK, machine(), devices=4, link=link, prefill=NONE, decode=NONE
    )
    read = cost.decode_cost(split(anatomy(), 4), WORK).bytes / 1e9
    assert found.device.decode.bytes == pytest.approx(read)
    once = 1e-3 + 1.5 * 2 * WIDTH * 2 / 1e6
    gather = 1e-3 + 0.75 * 2 * VOCABULARY * 2 / 1e6
    assert found.tpot_s == pytest.approx(found.device.tpot_s + 9 * once + gather)
    prompt = 1e-3 + 1.5 * 200 * WIDTH * 2 / 1e6
    assert found.prefill_s == pytest.approx(found.device.prefill_s + 9 * prompt + gather)


def test_one_device_is_what_it_was() -> None:
    alone = parallel.predict(anatomy(), WORK, machine(), devices=1)
    assert split(anatomy(), 1) is anatomy()
    assert alone.device == oracle.predict(anatomy(), WORK, machine())
    assert alone.prefill_link == alone.decode_link == 0


def test_reading_again_exchanges_too() -> None:
    again = replace(anatomy(), refresh=4)
    link = Link()
    found = parallel.predict(again, WORK, machine(), devices=2, link=link)
    step = parallel.link_seconds(again, 2, 2, 2, link)
    assert found.decode_link == pytest.approx(
        step + parallel.link_seconds(again, 10, 2, 2, link) / 5
    )


@pytest.mark.parametrize(("devices", "heads"), [(3, 4), (8, 4), (0, 4), (6, 12)])
def test_what_heads_do_not_allow_is_refused(devices: int, heads: int) -> None:
    size = heads * HEAD
    values = {"num_attention_heads": heads, "num_key_value_heads": 4, "hidden_size": size}
    with pytest.raises(SkimpError, match="--tensor-parallel"):
        split(anatomy(**values), devices)


@pytest.mark.parametrize("text", ["", "25", "a,b", "0,1", "1,-1", "nan,1", "1,2,3"])
def test_a_link_is_two_numbers(text: str) -> None:
    with pytest.raises(SkimpError, match="--link"):
        Link.parse(text)


def test_a_link_is_given_in_everyday_units() -> None:
    assert Link.parse("400,10") == Link(4e11, 10 * 1e-6)
