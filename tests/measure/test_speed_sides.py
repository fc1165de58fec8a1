"""What a run tells of each side beside its times: sizes, what decoded it, what was foretold."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.families import SAMPLES
from tests.measure.stage import DROPPED, MACHINE, Stage, build, drop, engine

from skimp import kernels
from skimp.engine import Engine, State
from skimp.engine.slots import Slot, SlotShape
from skimp.measure import cost, speed, timed
from skimp.measure.machine import Machine
from skimp.measure.oracle import Overheads, predict
from skimp.measure.speed import Collected
from skimp.measure.timed import Schedule
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.workload import Workload


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage.of(monkeypatch)


def _compare(family: str, text: str, plan: bool = True, **options: Any) -> Any:
    """By the real clock, on engines of its own."""
    model = options.pop("model", None) or build(family)
    chosen = drop(model) if plan else None
    options.setdefault("machine", MACHINE)
    return speed.compare_speed(model, chosen, Workload.parse(text), **options)


def test_weights_are_counted_on_the_tensors(stage: Stage) -> None:
    layer = stage.model.model.layers[DROPPED[0]]
    gone = sum(p.nbytes for m in (layer.self_attn, layer.input_layernorm) for p in m.parameters())
    found = stage.compare("10+8x2")
    assert found.dense.weight_bytes - found.planned.weight_bytes == len(DROPPED) * gone
    assert found.dense.weight_bytes >= engine("llama", None).anatomy.weight_bytes


# Full and sliding attention, both in one model, and a cache of transformers' own that grows.
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "falcon-7b", "falcon-alibi"])
@pytest.mark.parametrize("steps", [4, 32])
def test_the_cache_is_what_counting_foretells(family: str, steps: int) -> None:
    found = _compare(family, "9+12x2", steps=steps)
    sides = (
        (found.dense, engine(family, None)),
        (found.planned, engine(family, drop(build(family)))),
    )
    for side, served in sides:
        # Where the cache grows, what is in it after the last timed step.
        columns = 9 + 12 if served.plain is None else found.contexts[1] + 1
        held = side.kv_bytes_per_token * 2 * columns
        assert held == pytest.approx(cost.kv_bytes(served.anatomy, columns, 2), rel=0.03)
    assert found.planned.kv_bytes_per_token < found.dense.kv_bytes_per_token


def test_room_that_is_rounded_up_counts_as_room() -> None:
    tokens = 10
    like = torch.zeros(1)
    cache = {0: Slot.empty(SlotShape(1, 4, 4), 2, 64, like)}
    state = State(cache, torch.zeros(2, dtype=torch.long), False, capacity=tokens)
    assert timed.columns(engine("llama", None), state) == 64
    windows = {0: Slot.empty(SlotShape(1, 4, 4, window=8), 2, 64, like)}
    assert timed.columns(engine("mistral", None), replace(state, cache=windows)) == tokens
    assert timed.columns(engine("llama", None), replace(state, cache={})) == tokens


def test_the_peak_holds_weights_the_full_cache_and_what_passes(stage: Stage) -> None:
    found = stage.compare("10+30x2", steps=8)
    for side, anatomy in zip((found.dense, found.planned), stage.anatomies(), strict=True):
        held = side.weight_bytes + cost.kv_bytes(anatomy, 10 + 30, 2)
        passing = 2 * 10 * 48 * 4  # at least the FF's activations in the prefill
        assert held + passing <= side.peak_bytes < held + 16 * passing


def test_the_peak_of_a_growing_cache_is_at_its_full_length() -> None:
    found = _compare("falcon-alibi", "4+40x2", plan=False, steps=40)
    anatomy = engine("falcon-alibi", None).anatomy
    held = found.dense.weight_bytes + cost.kv_bytes(anatomy, 4 + 40, 2)
    passing = 2 * 4 * anatomy.ffn_size * 4
    assert cost.kv_bytes(anatomy, 40, 2) > 10 * passing
    assert held + passing <= found.dense.peak_bytes < held + 10 * passing


def _decoding(found: Any) -> tuple[str, str | None]:
    return found.engine.dense.path, found.engine.dense.reason


def test_the_document_says_what_decoded() -> None:
    path, reason = _decoding(_compare("llama", "6+4x2", plan=False))
    assert path == ("native" if kernels.available() else "torch")
    assert (reason is None) == (path == "native")
    path, reason = _decoding(_compare("falcon-7b", "6+4x2", plan=False))
    assert path == "transformers"
    assert reason
    assert reason == engine("falcon-7b", None).plain
    path, reason = _decoding(_compare("mixtral", "6+4x2", plan=False))
    assert path == "torch"
    assert reason == engine("mixtral", None).warm_up(2)


def test_numbers_the_native_program_is_not_for_decode_by_torch() -> None:
    half = SAMPLES["llama"].build(dtype=torch.float16)
    found = _compare("", "6+4x2", plan=False, model=half, machine=_machine(dtype="float16"))
    assert _decoding(found)[0] == "torch"


def test_a_compiled_step_is_told_from_an_eager_one() -> None:
    assert Engine(build("llama"), decode="compiled").path(2) == "compiled"
    assert Engine(build("llama"), decode="eager").path(2) == "torch"


def test_kernel_threads_are_told(stage: Stage) -> None:
    before = kernels.threads()
    kernels.set_threads(before + 1)
    try:
        assert stage.compare(plan=False).engine.threads == before + 1
    finally:
        kernels.set_threads(before)


def test_only_the_last_tokens_logits_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SAMPLES["llama"].build()
    forward, made = type(model).forward, []

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        made.append(output.logits.shape[1])
        return output

    monkeypatch.setattr(type(model), "forward", watched)
    _compare("", "6+8x2", model=model, steps=4)
    assert made
    assert set(made) == {1}


def test_models_that_always_give_all_logits_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SAMPLES["llama"].build()
    forward, made = type(model).forward, []

    def old(
        self: Any,
        input_ids: Any,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool = True,
    ) -> Any:
        output = forward(
            self,
            input_ids=input_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        made.append(output.logits.shape[1])
        return output

    monkeypatch.setattr(type(model), "forward", old)
    assert _compare("", "6+8x2", model=model).speedup.decode > 0
    assert 6 in made


def test_the_callers_model_is_not_touched() -> None:
    model = SAMPLES["llama"].build()
    modules = dict(model.named_modules())
    weights = {name: (weight, weight.clone()) for name, weight in model.named_parameters()}
    _compare("", "6+4x2", model=model)
    assert dict(model.named_modules()) == modules
    after = dict(model.named_parameters())
    assert after.keys() == weights.keys()
    assert all(after[n] is w and torch.equal(w, copy) for n, (w, copy) in weights.items())


def _machine(launch: float = 1e-6, dtype: str = "float32") -> Machine:
    return Machine("cpu", "a cpu", 2, 1, 1 << 34, "2", dtype, 1e6, 1e9, launch)


def test_the_same_prompt_and_the_same_steps_are_foretold(stage: Stage) -> None:
    found = stage.compare("10+30x2", steps=8)
    assert found.contexts == (21, 28)
    both = zip(("dense", "planned"), stage.anatomies(), strict=True)
    for name, anatomy in both:
        native = getattr(found.engine, name).path == "native"
        overheads = Overheads() if native else None
        foretold = getattr(found.predicted, name)
        steps = predict(anatomy, Workload(21, 8, 2), MACHINE, decode=overheads).tpot_s
        assert foretold.tpot_s == steps
        assert foretold.prefill_s == predict(anatomy, Workload(10, 30, 2), MACHINE).prefill_s
    dense, planned, ratios = (
        getattr(found.predicted, name) for name in ("dense", "planned", "speedup")
    )
    assert ratios.prefill == dense.prefill_s / planned.prefill_s > 1
    assert ratios.decode == dense.tpot_s / planned.tpot_s > 1


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_launches_are_foretold_only_where_torch_decodes(family: str) -> None:
    slow, quick = (
        _compare(family, "6+4x2", plan=False, machine=_machine(launch)) for launch in (1.0, 1e-6)
    )
    longer = slow.predicted.dense.tpot_s - quick.predicted.dense.tpot_s
    if slow.engine.dense.path == "native":
        assert longer == 0
    else:
        assert longer > 1
    assert slow.predicted.dense.prefill_s - quick.predicted.dense.prefill_s > 1


def test_how_much_of_a_bound_was_collected(stage: Stage) -> None:
    half = Collected.of(1.1, 1.2)
    assert half.gain == pytest.approx(0.5)
    assert half.share == pytest.approx(1.1 / 1.2)
    slower = Collected.of(0.9, 1.2)
    assert slower.gain == pytest.approx(-0.5)
    nothing = Collected.of(1.02, 1.0)
    assert nothing.gain is None
    assert nothing.share == pytest.approx(1.02)

    costs = {("dense", "prefill"): 3.0, ("dense", "decode"): 1.2}
    stage.takes = lambda _, done: costs.get((done.side, done.kind), 1.0)
    found = stage.compare()
    assert found.collected == {
        "prefill": Collected.of(found.speedup.prefill, found.compute_bound),
        "decode": Collected.of(found.speedup.decode, found.byte_bound),
    }
    assert found.collected["decode"].gain == pytest.approx(0.2 / (found.byte_bound - 1))


def test_the_real_clock_measures_something() -> None:
    found = _compare("llama", "10+8x2")
    for side in (found.dense, found.planned):
        assert 0 < side.tpot_s < 60
        assert 0 < side.prefill_s < 60
        assert isinstance(side.weight_bytes, int)


def test_steps_that_may_end_early_are_timed_by_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them stands for all: what was left out is the mean, and pairs are whole rounds."""
    model = build("llama")
    section = {"probe": [0], "rule": "threshold", "translator": "plain", "threshold": -1.0}
    plan = Plan.empty(Anatomy.of(model)).with_section("exit", section)
    layers = len(Anatomy.of(model).layers)
    text = torch.arange(3, 60)
    seen: list[int] = []
    pairs = speed.median_interval
    monkeypatch.setattr(
        speed, "median_interval", lambda ratios: seen.append(len(ratios)) or pairs(ratios)
    )
    found = speed.compare_speed(
        model, plan, Workload.parse("9+12x2"), machine=MACHINE, rounds=7, text=text
    )
    assert found.dense.layers_left_out is None and found.planned is not None
    assert found.planned.layers_left_out is not None
    # All leave after the first of the layers, but for steps that make good what waits.
    assert 0.4 < found.planned.layers_left_out <= 1 - 1 / layers
    assert seen == [7, 7]
    # The bytes that were left out are what its speed is measured by.
    whole = cost.decode_cost(Anatomy.of(model), found.workload)
    shortest = cost.partial_bytes(Anatomy.of(model), found.workload, layers=1, head=False)
    assert whole.bytes - shortest > whole.head_bytes
    assert found.byte_bound is not None and 1 < found.byte_bound <= whole.bytes / shortest


def test_prompts_are_cut_from_a_text() -> None:
    schedule = Schedule.of(
        Workload.parse("9+12x2"),
        4,
        torch.device("cpu"),
        Anatomy.of(build("llama")),
        torch.arange(100, 140),
    )
    tokens = schedule.prompt(torch.Generator().manual_seed(0))
    assert tokens.shape == (2, schedule.start)
    assert bool(((tokens.diff() == 1) | (tokens.diff() == -39)).all())
