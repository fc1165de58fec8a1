"""Paired timing: what is run, in which order, and that time is turned into the right figures.

Time itself is played by a clock that every forward pass of the model moves on.
"""

import functools
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from skimp.errors import WorkloadError
from skimp.measure import cost, memory, speed
from skimp.measure.machine import Machine
from skimp.models.anatomy import Anatomy, Sublayer
from skimp.models.carve import Zero, put_branch
from skimp.models.surgery import Surgery
from skimp.progress import Progress
from skimp.workload import Workload

_MACHINE = Machine("cpu", "a cpu", 2, 1, 1 << 34, "2", "float32", 1e6, 1e9, 1e-6)
_DROPPED = (1, 2)


@dataclass
class Pass:
    """One forward pass: whose it was, how many tokens it read, how many were in the cache."""

    side: str
    tokens: torch.Tensor
    cached: int
    logits_to_keep: int | None
    output: torch.Tensor


@dataclass
class Stage:
    """A tiny model whose passes are recorded and move a clock on."""

    model: Any
    passes: list[Pass] = field(default_factory=list)
    side: str = "dense"
    now: float = 0.0
    takes: Callable[["Stage", Pass], float] = lambda stage, done: 1.0

    @contextmanager
    def planned(self) -> Iterator[None]:
        surgery, family = Surgery(), Anatomy.of(self.model).family
        for index in _DROPPED:
            put_branch(self.model.model.layers[index], family.attention, Zero(2), surgery.set)
        self.side = "planned"
        try:
            yield
        finally:
            self.side = "dense"
            surgery.undo()

    def anatomies(self) -> tuple[Anatomy, Anatomy]:
        dense = Anatomy.of(self.model)
        empty = Sublayer("attention", "zero", ())
        layers = [
            replace(layer, attention=empty) if index in _DROPPED else layer
            for index, layer in enumerate(dense.layers)
        ]
        return dense, replace(dense, layers=tuple(layers))

    def compare(self, text: str = "10+8x2", plan: bool = True, **options: Any) -> Any:
        return speed.compare_speed(
            self.model,
            self.planned if plan else None,
            Workload.parse(text),
            machine=_MACHINE,
            anatomies=self.anatomies(),
            **options,
        )

    def timed(self, side: str | None = None) -> list[Pass]:
        """The passes after the warm-up, which ends where the second side's last step does."""
        sides = {done.side for done in self.passes}
        starts = [i for i, done in enumerate(self.passes) if done.cached == 0]
        timed = self.passes[starts[len(sides)] :]
        return [done for done in timed if side in (None, done.side)]


def _model(kind: str = "llama", **values: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
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


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return _stage(monkeypatch, _model())


def _stage(monkeypatch: pytest.MonkeyPatch, model: Any) -> Stage:
    stage = Stage(model)
    forward = model.forward

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        cache = kwargs["past_key_values"]
        cached = cache.get_seq_length() if cache is not None else 0
        output = forward(*args, **kwargs)
        done = Pass(
            stage.side,
            kwargs["input_ids"].clone(),
            cached,
            kwargs.get("logits_to_keep"),
            output.logits[:, -1:].argmax(-1),
        )
        stage.passes.append(done)
        stage.now += stage.takes(stage, done)
        return output

    monkeypatch.setattr(model, "forward", watched)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: stage.now))
    return stage


def test_the_json_form(stage: Stage) -> None:
    found = stage.compare().as_dict()
    assert {"workload", "dense", "planned", "speedup", "byte_bound"} <= set(found)
    side = {
        "prefill_s",
        "tpot_s",
        "tokens_per_s",
        "weight_bytes",
        "kv_bytes_per_token",
        "peak_bytes",
        "roofline_share",
    }
    assert side <= set(found["dense"])
    assert set(found["dense"]) == set(found["planned"])
    assert {"prefill", "decode", "decode_interval"} <= set(found["speedup"])
    assert set(found["byte_bound"]) == {"decode"}
    assert set(found["compute_bound"]) == {"prefill"}
    assert json.dumps(found)
    assert found["workload"] == "10+8x2"


def test_the_dense_model_alone(stage: Stage) -> None:
    comparison = stage.compare(plan=False)
    found = comparison.as_dict()
    assert found["planned"] is None
    assert found["speedup"] is None
    assert found["byte_bound"] is found["compute_bound"] is None
    assert not comparison.faster
    assert found["dense"]["tpot_s"] == 1.0
    assert {done.side for done in stage.passes} == {"dense"}


def test_times_become_figures(stage: Stage) -> None:
    costs = {("dense", True): 8.0, ("dense", False): 1.2, ("planned", True): 5.0}
    stage.takes = lambda _, done: costs.get((done.side, done.cached == 0), 1.0)
    found = stage.compare("10+8x2")
    assert found.dense.prefill_s == pytest.approx(8)
    assert found.dense.tpot_s == pytest.approx(1.2)
    assert found.planned.tpot_s == pytest.approx(1.0)
    assert found.dense.tokens_per_s == pytest.approx(2 / 1.2)
    assert found.speedup.prefill == pytest.approx(8 / 5)
    assert found.speedup.decode == pytest.approx(1.2)
    assert found.speedup.decode_interval == pytest.approx((1.2, 1.2))
    assert found.faster
    dense, planned = stage.anatomies()
    step = cost.decode_cost(dense, found.workload).bytes
    assert found.dense.roofline_share == pytest.approx(step / 1e6 / 1.2)
    assert found.byte_bound == cost.byte_bound(dense, planned, found.workload)
    assert found.compute_bound == cost.compute_bound(dense, planned, found.workload)


def test_a_slower_plan_is_not_faster(stage: Stage) -> None:
    stage.takes = lambda _, done: 1.1 if done.side == "planned" else 1.0
    found = stage.compare()
    assert found.speedup.decode == pytest.approx(1 / 1.1)
    assert not found.faster


def test_equal_sides_are_not_faster_under_drift_and_spikes(stage: Stage) -> None:
    random = torch.Generator().manual_seed(1)

    def busy(stage: Stage, done: Pass) -> float:
        drift = 1.002 ** len(stage.passes)  # more than doubles over the run
        spike = 10.0 if torch.rand(1, generator=random).item() < 0.1 else 0.0
        return drift + spike

    stage.takes = busy
    found = stage.compare("10+24x1")
    low, high = found.speedup.decode_interval
    assert low <= 1 <= high
    assert found.speedup.decode == pytest.approx(1, abs=0.05)


def test_every_decode_step_feeds_one_greedy_token_and_the_cache(stage: Stage) -> None:
    stage.compare("10+8x2")
    for side in ("dense", "planned"):
        last = None
        for done in stage.timed(side):
            if done.cached:
                assert last is not None
                assert done.cached == last.cached + last.tokens.shape[1]
                assert torch.equal(done.tokens, last.output)
            else:
                assert done.tokens.shape == (2, 10)
            last = done


def test_prefill_asks_for_the_last_logits_only(stage: Stage) -> None:
    stage.compare()
    assert {done.logits_to_keep for done in stage.passes} == {1}


def test_models_that_always_give_all_logits_work(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _stage(monkeypatch, _model())
    forward = stage.model.forward

    def old(input_ids: Any, past_key_values: Any = None, use_cache: bool = True) -> Any:
        return forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    monkeypatch.setattr(stage.model, "forward", old)
    assert stage.compare().speedup.decode == 1
    assert {done.logits_to_keep for done in stage.passes} == {None}


@pytest.mark.parametrize(
    ("text", "steps", "contexts"),
    [("10+8", 32, (10, 17)), ("10+20", 8, (16, 23)), ("10+21", 8, (16, 23)), ("1+1", 32, (1, 1))],
)
def test_the_middle_of_the_workload_is_timed(
    stage: Stage, text: str, steps: int, contexts: tuple[int, int]
) -> None:
    found = stage.compare(text, steps=steps)
    assert found.contexts == contexts
    assert abs(sum(contexts) / 2 - found.workload.mean_context) <= 0.5
    steps_seen = {d.cached for d in stage.timed() if d.cached and d.cached >= contexts[0]}
    assert steps_seen == set(range(contexts[0], contexts[1] + 1))
    assert {d.tokens.shape[1] for d in stage.timed() if not d.cached} == {found.workload.prompt}


def test_what_is_read_before_the_timed_steps_is_not_timed(stage: Stage) -> None:
    stage.takes = lambda _, done: 1.0 if done.tokens.shape[1] == 1 or not done.cached else 99.0
    found = stage.compare("10+20", steps=8)
    assert found.dense.prefill_s == found.dense.tpot_s == 1.0
    assert found.dense.tpot_spread == (1.0, 1.0)


def test_sides_take_turns_and_turns_take_sides(stage: Stage) -> None:
    stage.compare("10+8x1")
    runs: list[tuple[str, int]] = []
    for done in stage.timed():
        kind = 0 if not done.cached else 1 + (done.cached - 10) // 4
        if not runs or runs[-1] != (done.side, kind):
            runs.append((done.side, kind))
    first, second = runs[:6], runs[6:12]
    assert first == [
        ("dense", 0),
        ("planned", 0),
        ("planned", 1),
        ("dense", 1),
        ("dense", 2),
        ("planned", 2),
    ]
    other = {"dense": "planned", "planned": "dense"}
    assert second == [(other[side], kind) for side, kind in first]
    assert len(runs) == 6 * 6


def test_both_sides_read_the_same_new_prompt_each_round(stage: Stage) -> None:
    stage.compare(seed=3)
    dense, planned = (
        [done.tokens for done in stage.timed(side) if not done.cached]
        for side in ("dense", "planned")
    )
    assert len(dense) == 6
    assert all(torch.equal(a, b) for a, b in zip(dense, planned, strict=True))
    assert not torch.equal(dense[0], dense[1])


def test_the_seed_sets_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    def prompts(seed: int) -> torch.Tensor:
        with monkeypatch.context() as patch:
            stage = _stage(patch, _model())
            stage.compare(plan=False, seed=seed)
        return torch.stack([done.tokens for done in stage.timed() if not done.cached])

    assert torch.equal(prompts(3), prompts(3))
    assert not torch.equal(prompts(3), prompts(4))


def test_sizes_are_counted_on_the_tensors(stage: Stage) -> None:
    layer = stage.model.model.layers[1]
    gone = sum(p.nbytes for m in (layer.self_attn, layer.input_layernorm) for p in m.parameters())
    found = stage.compare("10+8x2")
    assert found.dense.weight_bytes - found.planned.weight_bytes == len(_DROPPED) * gone
    assert found.dense.kv_bytes_per_token == 4 * 2 * 2 * 8 * 4
    assert found.planned.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_the_peak_holds_weights_the_full_cache_and_what_passes(stage: Stage) -> None:
    found = stage.compare("10+30x2", steps=8)
    for side in (found.dense, found.planned):
        held = side.weight_bytes + side.kv_bytes_per_token * 2 * (10 + 30)
        passing = 2 * 10 * 64 * 4  # at least the FF's activations in the prefill
        assert held + passing <= side.peak_bytes < held + 12 * passing


def test_a_window_bounds_peak_and_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _stage(monkeypatch, _model("mistral", sliding_window=8))
    found = stage.compare("20+30x2", plan=False)
    window = cost.kv_bytes(stage.anatomies()[0], 8, 2)
    assert found.dense.kv_bytes_per_token * 2 * 50 == pytest.approx(window)


def _only(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (speed, memory):
        monkeypatch.setattr(module, "available_bytes", lambda device: size)


def test_caches_that_do_not_fit_together_live_one_after_the_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, _ = stage.anatomies()
    workload = Workload.parse("10+8x2")
    _only(cost.run_bytes(dense, workload), monkeypatch)
    found = stage.compare(str(workload))
    sides = [done.side for done in stage.timed()]
    changes = [b for a, b in pairwise(sides) if a != b]
    assert sides[0] == "dense"
    assert len(changes) == 6  # dense planned | planned dense | dense planned | …
    assert found.speedup.decode == 1
    assert len(stage.timed("dense")) == len(stage.timed("planned")) == 6 * 9


def test_a_context_longer_than_the_model_takes_is_refused(stage: Stage) -> None:
    stage.compare("60+4", plan=False)
    with pytest.raises(WorkloadError, match="context length of 64"):
        stage.compare("60+5", plan=False)


@pytest.mark.parametrize("fits", ["10+8x3", "7+8x1"])
def test_a_batch_that_does_not_fit_is_refused_before_trying(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, fits: str
) -> None:
    dense, _ = stage.anatomies()
    _only(cost.run_bytes(dense, Workload.parse(fits)), monkeypatch)
    with pytest.raises(WorkloadError) as error:
        stage.compare("10+8x40")
    assert f"{fits} would fit" in str(error.value)
    assert not stage.passes
    stage.compare(fits)


def test_an_answer_that_never_fits_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _only(1, monkeypatch)
    with pytest.raises(WorkloadError, match="no shorter prompt"):
        stage.compare()


def test_too_few_rounds_are_refused(stage: Stage) -> None:
    with pytest.raises(WorkloadError, match="rounds"):
        stage.compare(rounds=5)


def test_everything_is_as_before_afterwards(stage: Stage) -> None:
    modules = dict(stage.model.named_modules())
    assert gc.isenabled()
    stage.compare()
    assert dict(stage.model.named_modules()) == modules
    assert gc.isenabled()
    assert stage.side == "dense"


def test_progress_reaches_its_total(stage: Stage) -> None:
    seen: dict[str, Any] = {"done": 0}

    class Watched(Progress):
        @contextmanager
        def task(self, label: str, total: int | None = None) -> Iterator[Callable[[], None]]:
            seen.update(label=label, total=total)
            yield lambda: seen.update(done=seen["done"] + 1)

    stage.compare("10+8x2", progress=Watched())
    assert seen == {"label": "speed 10+8x2", "total": seen["done"], "done": seen["done"]}


def test_anatomies_are_read_off_a_plan_that_skimp_applied(stage: Stage) -> None:
    skimp = pytest.importorskip("skimp.methods.apply")
    from skimp.plan import ModelRef, Plan

    dense = Anatomy.of(stage.model)
    section = {"attention": list(_DROPPED), "ffn": [], "fill": "zero"}
    plan = Plan(model=ModelRef.of(dense), sections={"drop": section})

    def switch() -> AbstractContextManager[Any]:
        return skimp.apply(stage.model, plan)

    found = speed.compare_speed(stage.model, switch, Workload(10, 8, 2), machine=_MACHINE)
    assert found.byte_bound == cost.byte_bound(*stage.anatomies(), found.workload)
    assert found.planned is not None
    assert found.planned.kv_bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_a_yardstick_that_is_beaten_is_taken_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def profile(device: Any, dtype: Any, *, fresh: bool = False) -> Machine:
        asked.append(fresh)
        return replace(_MACHINE, bandwidth=1e9 if fresh else 1.0)

    monkeypatch.setattr(speed, "profile", profile)
    found = speed.compare_speed(stage.model, None, Workload(10, 8, 2))
    assert asked == [False, True]
    assert found.dense.roofline_share < 1
    assert found.machine.bandwidth == 1e9


def test_the_real_clock_measures_something() -> None:
    found = speed.compare_speed(_model(), None, Workload(10, 8, 2), machine=_MACHINE)
    assert 0 < found.dense.tpot_s < 60
    assert 0 < found.dense.prefill_s < 60
    assert isinstance(found.dense.weight_bytes, int)
