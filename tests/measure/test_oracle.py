"""Predicted times against hand counts, known overheads and what can never be."""

from collections.abc import Iterable
from dataclasses import astuple, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from skimp.errors import SkimpError
from skimp.measure import cost, oracle
from skimp.measure.machine import Machine
from skimp.measure.oracle import Overheads, Timing, measure_overheads, predict
from skimp.models.anatomy import Anatomy, Part, Sublayer
from skimp.workload import Workload

NONE = Overheads()
KNOWN = Overheads(step=3e-4, sublayer=4e-5, fill=1e-5, activation=2e-10, weights=0.07, kv=0.3)
LAYERS, WIDTH, INNER, VOCABULARY, KV = 4, 32, 64, 96, 16
ATTENTION = 2 * WIDTH * WIDTH + 2 * WIDTH * KV
FFN = 3 * WIDTH * INNER


@cache
def anatomy(kind: str = "llama", dtype: str = "bfloat16", **values: Any) -> Anatomy:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, **(settings | values))
        return Anatomy.of(AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)))


def experts() -> Anatomy:
    return anatomy("mixtral", num_local_experts=8, num_experts_per_tok=2)


def machine(**rates: Any) -> Machine:
    about = Machine("cpu", "a cpu", 2, 1, 1 << 34, "2", "bfloat16", 1e9, 1e10, 1e-6)
    return replace(about, **rates)


def without(
    dense: Anatomy, attention: Iterable[int] = (), ffn: Iterable[int] = (), rank: int = 0
) -> Anatomy:
    """The model without these sublayers, and fills of a rank in place of the attentions."""
    parts = ()
    if rank:
        size = 2 * rank * WIDTH
        parts = tuple(Part(f"fill.{n}", "fill", (WIDTH, rank), size // 2, size) for n in range(2))
    fill = Sublayer("attention", f"linear:{rank}" if rank else "zero", parts)
    empty = Sublayer("ffn", "zero", ())
    layers = [
        replace(
            layer,
            attention=fill if layer.source in set(attention) else layer.attention,
            ffn=empty if layer.source in set(ffn) else layer.ffn,
        )
        for layer in dense.layers
    ]
    return replace(dense, layers=tuple(layers))


def test_a_step_that_only_reads_takes_its_bytes() -> None:
    work = Workload(100, 11)
    quick = machine(matmul=1e18)
    found = predict(anatomy(), work, quick, decode=NONE, prefill=NONE)
    read = cost.decode_cost(anatomy(), work).bytes
    assert found.tpot_s == pytest.approx(read / 1e9)
    assert found.decode.bytes == pytest.approx(found.tpot_s)
    assert found.decode.overhead == 0


def test_a_prefill_takes_its_products_and_its_scores() -> None:
    work = Workload(200, 1)
    slow = machine(bandwidth=1e18, matmul=1e9, products=((1, 1e8), (200, 2e9)))
    found = predict(anatomy(), work, slow, decode=NONE, prefill=NONE)
    # A norm's bytes count as weights that nothing is multiplied with: a little fewer rows.
    matrices = 200 * 2 * LAYERS * (ATTENTION + FFN) / 2e9
    head = 2 * WIDTH * VOCABULARY / 1e8
    scores = LAYERS * (4 * 4 * 8) * (200 * 201 / 2) / 1e9
    assert found.prefill_s == pytest.approx(matrices + head + scores, rel=0.01)
    assert found.prefill.flops == pytest.approx(found.prefill_s)


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
def test_a_large_batch_waits_for_its_products_but_still_reads_its_cache(
    dtype: str, size: int
) -> None:
    work, dense = Workload(512, 1, 32), anatomy(dtype=dtype)
    rates = machine(products=((1, 1e9), (32, 4e9), (64, 7e9)), dtype=dtype)
    found = predict(dense, work, rates, decode=NONE)
    matrices = 32 * 2 * (LAYERS * (ATTENTION + FFN) + WIDTH * VOCABULARY) / 4e9
    cached = 32 * 512 * LAYERS * 2 * KV * size / 1e9
    assert found.tpot_s == pytest.approx(matrices + cached, rel=0.01)
    one = predict(dense, Workload(512, 1), rates, decode=NONE)
    weights = cost.decode_cost(dense, Workload(512, 1)).weight_bytes / 1e9
    assert one.tpot_s == pytest.approx(weights + cached / 32, rel=0.01)


def test_an_expert_is_multiplied_with_the_tokens_that_picked_it() -> None:
    """32 tokens with 2 of 8 experts each: 8 rows an expert, where products are slower."""
    rows = {8: 2e9, 32: 5e9}
    rates = machine(bandwidth=1e18, products=tuple(rows.items()), matmul=1e18)
    found = predict(experts(), Workload(16, 1, 32), rates, decode=NONE)
    picked = 32 * 2 * LAYERS * (2 * FFN + 8 * WIDTH)
    shared = 32 * 2 * (LAYERS * ATTENTION + WIDTH * VOCABULARY)
    assert found.tpot_s == pytest.approx(picked / rows[8] + shared / rows[32], rel=0.01)


def test_experts_read_what_a_token_needs() -> None:
    found = predict(experts(), Workload(16, 1), machine(matmul=1e18), decode=NONE)
    read = 2 * (LAYERS * (ATTENTION + 2 * FFN + 8 * WIDTH) + WIDTH * VOCABULARY)
    assert found.decode.bytes == pytest.approx(read / 1e9, rel=0.06)  # norms and the cache


def test_overheads_are_counted_by_what_a_plan_has() -> None:
    dense = anatomy()
    filled = without(dense, attention=[1, 2], ffn=[3], rank=4)
    work = Workload(64, 1, 3)
    only = {
        name: predict(filled, work, machine(), decode=overheads).decode.overhead
        for name, overheads in {
            "step": Overheads(step=1.0),
            "sublayer": Overheads(sublayer=1.0),
            "fill": Overheads(fill=1.0),
            "activation": Overheads(activation=1.0),
        }.items()
    }
    passed = 2 * (4 * WIDTH + 2 * (WIDTH + KV)) + 3 * 3 * (WIDTH + INNER) + 2 * 2 * (WIDTH + 4)
    assert only == {"step": 1, "sublayer": 5, "fill": 2, "activation": 3 * passed}
    plain = predict(filled, work, machine(), decode=NONE)
    slower = predict(filled, work, machine(), decode=Overheads(weights=0.5, kv=0.5))
    assert slower.tpot_s == pytest.approx(1.5 * plain.tpot_s)


def test_reading_again_costs_a_pass_of_its_own() -> None:
    """Its bytes are in the mean step already; its products and overhead are shared by the steps."""
    plain, work = anatomy(), Workload(64, 8, 2)
    again = replace(plain, refresh=3)
    slow, pass_overheads = machine(matmul=1e6), Overheads(step=1.0)
    step, mean = (
        predict(each, work, slow, prefill=pass_overheads, decode=NONE).decode
        for each in (plain, again)
    )
    whole = predict(plain, Workload(4, 1, 2), slow, prefill=pass_overheads).prefill
    assert mean.bytes == step.bytes
    assert mean.overhead == pytest.approx(step.overhead + whole.overhead / 4)
    assert mean.flops == pytest.approx(step.flops + whole.flops / 4)
    assert whole.flops > 0 < whole.overhead


def test_an_empty_gap_is_no_fill() -> None:
    bare = without(anatomy(), attention=[0, 1])
    only = Overheads(fill=1.0)
    assert predict(bare, Workload(8, 1), machine(), decode=only).decode.overhead == 0


def test_what_an_expert_passes_on_counts_for_those_picked() -> None:
    found = predict(experts(), Workload(8, 1), machine(), decode=Overheads(activation=1.0))
    attention = 4 * WIDTH + 2 * (WIDTH + KV)
    ffn = (WIDTH + 8) + 2 * (2 * INNER + WIDTH + INNER + WIDTH)  # router; gate and up, down
    assert found.decode.overhead == pytest.approx(LAYERS * (attention + ffn), rel=0.05)


def test_launches_are_assumed_on_a_cpu_only() -> None:
    """On a GPU they overlap with the work; a floor must not count them."""
    assert Overheads.least(machine(device="a gpu")) == NONE
    assumed = Overheads.least(machine())
    assert assumed.step > assumed.sublayer / 5 > 0
    assert 0 < assumed.fill < assumed.sublayer
    double = Overheads.least(machine(launch=2e-6))
    assert astuple(double) == pytest.approx([2 * value for value in astuple(assumed)])
    found = predict(anatomy(), Workload(8, 1), machine())
    assert found.decode.overhead == pytest.approx(assumed.step + 2 * LAYERS * assumed.sublayer)


rates = st.floats(1e6, 1e15)
machines = st.builds(
    machine,
    bandwidth=rates,
    matmul=rates,
    launch=st.floats(1e-8, 1e-3),
    products=st.dictionaries(st.integers(1, 2048), rates, max_size=5).map(
        lambda found: tuple(sorted(found.items()))
    ),
)
small = st.floats(0, 1)
overheads = st.builds(Overheads, small, small, st.just(0.0), small, small, small)
workloads = st.builds(Workload, st.integers(1, 300), st.integers(1, 60), st.integers(1, 40))
layers = st.sets(st.integers(0, LAYERS - 1))
dense_models = st.sampled_from(["llama", "mixtral"]).map(
    lambda kind: experts() if kind == "mixtral" else anatomy()
)


def slower(one: oracle.Prediction, other: oracle.Prediction) -> bool:
    """Whether `one` takes at least as long as `other`, in both passes."""
    pairs = ((one.prefill_s, other.prefill_s), (one.tpot_s, other.tpot_s))
    return all(a >= b * (1 - 1e-9) for a, b in pairs)


@given(dense_models, machines, overheads, workloads, layers, layers, layers, layers)
def test_leaving_more_out_is_never_slower(
    dense: Anatomy,
    rates: Machine,
    extra: Overheads,
    work: Workload,
    attention: set[int],
    ffn: set[int],
    more: set[int],
    more_ffn: set[int],
) -> None:
    some, most = (
        predict(without(dense, *gone), work, rates, decode=extra, prefill=extra)
        for gone in ((attention, ffn), (attention | more, ffn | more_ffn))
    )
    assert slower(some, most)


@given(machines, workloads, layers, layers)
def test_a_fill_lies_between_nothing_and_what_it_stands_for(
    rates: Machine, work: Workload, attention: set[int], ffn: set[int]
) -> None:
    bare, filled, dense = (
        predict(without(anatomy(), *gone), work, rates)
        for gone in ((attention, ffn, 0), (attention, ffn, 4), ((), ffn, 0))
    )
    assert slower(filled, bare)
    assert slower(dense, filled)


@given(dense_models, machines, overheads, workloads, st.integers(0, 300), st.integers(0, 40))
def test_more_context_and_larger_batches_are_never_faster(
    dense: Anatomy, rates: Machine, extra: Overheads, work: Workload, longer: int, wider: int
) -> None:
    before = predict(dense, work, rates, decode=extra, prefill=extra)
    for grown in (
        replace(work, prompt=work.prompt + longer),
        replace(work, batch=work.batch + wider),
        replace(work, new=work.new + longer),
    ):
        assert slower(predict(dense, grown, rates, decode=extra, prefill=extra), before)


@given(dense_models, machines, overheads, workloads)
def test_parts_add_up_to_the_whole(
    dense: Anatomy, rates: Machine, extra: Overheads, work: Workload
) -> None:
    found = predict(dense, work, rates, decode=extra, prefill=extra)
    shown = found.as_dict()
    for name, seconds in (("prefill", found.prefill_s), ("decode", found.tpot_s)):
        parts = shown[name]
        assert set(parts) == {"bytes", "flops", "overhead"}
        assert all(part >= 0 for part in parts.values())
        assert sum(parts.values()) == pytest.approx(seconds)
    assert (shown["prefill_s"], shown["tpot_s"]) == (found.prefill_s, found.tpot_s)
    # Overheads are over and above the roofline, which is the same without them.
    bare = predict(dense, work, rates, decode=NONE, prefill=NONE)
    assert bare.tpot_s == pytest.approx(found.decode.bytes + found.decode.flops)


def seconds(timing: Timing, kind: Literal["prefill", "decode"], extra: Overheads) -> float:
    """What is foretold for a timing's model and workload."""
    told = predict(timing.anatomy, timing.workload, machine(), decode=extra, prefill=extra)
    return told.tpot_s if kind == "decode" else told.prefill_s


def varied(kind: Literal["prefill", "decode"], noise: float = 0.0) -> list[Timing]:
    """Plans with and without fills, at several workloads, as an engine with KNOWN runs them."""
    drops = [(), (0,), (1, 2), (0, 1, 2, 3)]
    plans = [
        without(anatomy(), drop, ffn, rank) for drop in drops for ffn, rank in (((), 0), ((3,), 4))
    ]
    works = [Workload(16, 8), Workload(1000, 8), Workload(300, 8, 4), Workload(64, 8, 16)]
    draws = np.random.default_rng(0)
    found = []
    for plan in plans:
        for work in works:
            exact = seconds(Timing(plan, work, 0.0), kind, KNOWN)
            found.append(Timing(plan, work, exact * float(np.exp(noise * draws.normal()))))
    return found


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_known_overheads_are_recovered(kind: Literal["prefill", "decode"]) -> None:
    found = measure_overheads(varied(kind), machine(), kind)
    assert astuple(found) == pytest.approx(astuple(KNOWN), rel=0.02)


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_noisy_timings_foretell_others_within_their_noise(
    kind: Literal["prefill", "decode"],
) -> None:
    noise = 0.03
    timed = [timing for index, timing in enumerate(varied(kind, noise)) if index % 3]
    held_out = varied(kind)[::3]

    def error(found: Overheads) -> float:
        """Median over timings that nothing was solved from."""
        told = [seconds(timing, kind, found) / timing.seconds for timing in held_out]
        return float(np.median(np.abs(np.array(told) - 1)))

    assert error(measure_overheads(timed, machine(), kind)) < noise
    assert error(Overheads.least(machine())) > 3 * noise


def test_what_timings_do_not_show_stays_as_assumed() -> None:
    """Without a fill in any timed plan, nothing is known of a fill's overhead."""
    states = {
        timing: {layer.attention.state for layer in timing.anatomy.layers}
        for timing in varied("decode")
    }
    bare = [timing for timing, seen in states.items() if "linear:4" not in seen]
    assert len(bare) > 6
    assumed = Overheads(fill=0.125)
    found = measure_overheads(bare, machine(), "decode", assumed=assumed)
    assert found.fill == pytest.approx(0.125)
    assert found.step == pytest.approx(KNOWN.step, rel=0.02)
    assert measure_overheads(bare, machine(), "decode").fill == pytest.approx(
        Overheads.least(machine()).fill
    )


def test_a_single_timing_is_explained() -> None:
    [timing, *_] = varied("decode")
    found = measure_overheads([timing], machine(), "decode")
    told = predict(timing.anatomy, timing.workload, machine(), decode=found)
    assert told.tpot_s == pytest.approx(timing.seconds, rel=1e-3)


def test_faster_than_the_roofline_means_no_overhead_not_a_negative_one() -> None:
    timings = [replace(timing, seconds=timing.seconds / 1e4) for timing in varied("decode")]
    found = measure_overheads(timings, machine(), "decode")
    assert max(astuple(found)) < 1e-3
    assert min(astuple(found)) >= 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12))
def test_the_solver_meets_the_conditions_of_its_optimum(
    seed: int, unknowns: int, rows: int
) -> None:
    draws = np.random.default_rng(seed)
    left, right = draws.normal(size=(rows + unknowns, unknowns)), draws.normal(size=rows + unknowns)
    found = oracle._non_negative(left, right)
    assert (found >= 0).all()
    slope = left.T @ (left @ found - right)
    assert slope[found > 0] == pytest.approx(0, abs=1e-8)
    assert (slope[found == 0] >= -1e-8).all()


@pytest.mark.parametrize(
    ("rates", "named"),
    [
        ({"bandwidth": -1e9}, "bandwidth"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"matmul": float("nan")}, "matmul"),
        ({"launch": float("inf")}, "launch"),
        ({"products": ((1, 1e9), (64, -5.0))}, "64 rows"),
        ({"dtype": "float32"}, "2 bytes"),
        ({"dtype": "manual_seed"}, "2 bytes"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(rates: dict[str, Any], named: str) -> None:
    with pytest.raises(SkimpError, match=named):
        predict(anatomy(), Workload(8, 1), machine(**rates))
    with pytest.raises(SkimpError, match=named):
        measure_overheads([Timing(anatomy(), Workload(8, 1), 1.0)], machine(**rates), "decode")


@pytest.mark.parametrize("name", ["step", "sublayer", "fill", "activation", "weights", "kv"])
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_overheads_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(SkimpError, match=name):
        Overheads(**{name: value})


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_timings_that_cannot_be_are_refused(seconds: float) -> None:
    timing = Timing(anatomy(), Workload(8, 1), seconds)
    with pytest.raises(SkimpError, match="timings"):
        measure_overheads([timing], machine(), "decode")


def test_no_timings_are_refused() -> None:
    with pytest.raises(SkimpError, match="timings"):
        measure_overheads([], machine(), "prefill")
