"""Paired timing: what is run, in which order, and that time is turned into the right figures.

Time itself is played by a clock that every pass of an engine moves on.
"""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.measure.stage import MACHINE, Pass, Stage, build, drop

from skimp.errors import PlanError, WorkloadError
from skimp.measure import cost, memory, speed, timed
from skimp.measure.machine import Machine
from skimp.progress import Progress
from skimp.workload import Workload


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage.of(monkeypatch)


def test_the_json_form(stage: Stage) -> None:
    found = stage.compare().as_dict()
    side = {
        "prefill_s",
        "tpot_s",
        "tpot_spread",
        "tokens_per_s",
        "weight_bytes",
        "kv_bytes_per_token",
        "peak_bytes",
        "roofline_share",
        "layers_left_out",
    }
    assert set(found["dense"]) == set(found["planned"]) == side
    assert {"prefill", "decode", "decode_interval"} <= set(found["speedup"])
    assert set(found["byte_bound"]) == {"decode"}
    assert set(found["compute_bound"]) == {"prefill"}
    assert set(found["predicted"]) == {"dense", "planned", "speedup"}
    assert set(found["predicted"]["planned"]) == {"prefill_s", "tpot_s"}
    assert set(found["predicted"]["speedup"]) == {"prefill", "decode"}
    assert {name: set(part) for name, part in found["collected"].items()} == {
        "prefill": {"gain", "share"},
        "decode": {"gain", "share"},
    }
    assert set(found["engine"]) == {"dense", "planned", "threads"}
    assert json.loads(json.dumps(found))["workload"] == "10+8x2"


def test_the_dense_model_alone(stage: Stage) -> None:
    comparison = stage.compare(plan=False)
    found = comparison.as_dict()
    for name in ("planned", "speedup", "byte_bound", "compute_bound", "collected"):
        assert found[name] is None
    assert found["predicted"]["planned"] is found["predicted"]["speedup"] is None
    assert found["engine"]["planned"] is None
    assert not comparison.faster
    assert found["dense"]["tpot_s"] == 1.0
    assert {done.side for done in stage.passes} == {"dense"}


def test_times_become_figures(stage: Stage) -> None:
    costs = {("dense", "prefill"): 8.0, ("dense", "decode"): 1.2, ("planned", "prefill"): 5.0}
    stage.takes = lambda _, done: costs.get((done.side, done.kind), 1.0)
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
    assert found.byte_bound == cost.byte_bound(dense, planned, found.workload) > 1
    assert found.compute_bound == cost.compute_bound(dense, planned, found.workload) > 1


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
            if done.kind == "decode":
                assert last is not None
                assert done.cached == last.cached + last.tokens.shape[1]
                assert torch.equal(done.tokens[:, 0], last.picked)
                assert done.state is last.state
            else:
                assert done.kind == "prefill"
                assert done.tokens.shape == (2, 10)
                assert done.room == 8
            last = done


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
    seen = {kind: [d for d in stage.timed() if d.kind == kind] for kind in ("prefill", "decode")}
    assert {done.cached for done in seen["decode"]} == set(range(contexts[0], contexts[1] + 1))
    assert {done.tokens.shape[1] for done in seen["prefill"]} == {found.workload.prompt}


@pytest.mark.parametrize("steps", [1, 8])  # one: no median over steps that could hide anything
def test_what_is_read_before_the_timed_steps_is_not_timed(stage: Stage, steps: int) -> None:
    stage.takes = lambda _, done: 99.0 if done.kind == "extend" else 1.0
    found = stage.compare("10+20", steps=steps)
    between = (20 - steps) // 2
    read = [done.tokens.shape[1] for done in stage.timed() if done.kind == "extend"]
    assert read == [between] * 12
    assert found.dense.prefill_s == found.dense.tpot_s == 1.0
    assert found.dense.tpot_spread == (1.0, 1.0)


def test_the_warm_up_comes_first_and_is_not_timed(stage: Stage) -> None:
    first = {"dense": 0, "planned": 0}

    def slow_at_first(stage: Stage, done: Pass) -> float:
        first[done.side] += done.kind == "prefill"
        return {"dense": 99.0, "planned": 49.0}[done.side] if first[done.side] == 1 else 1.0

    stage.takes = slow_at_first
    found = stage.compare("10+8x2", steps=1)
    one = ["warm_up 2", "prefill", "extend", "decode", "decode"]
    expected = [(side, kind) for side in ("dense", "planned") for kind in one]
    assert stage.events[: len(expected)] == expected
    assert len(stage.warming()) == 8
    assert sum(kind.startswith("warm_up") for _, kind in stage.events) == 2
    for side in (found.dense, found.planned):
        assert (side.prefill_s, side.tpot_s, side.tpot_spread) == (1.0, 1.0, (1.0, 1.0))
    assert found.speedup.prefill_interval == found.speedup.decode_interval == (1.0, 1.0)


def test_sides_take_turns_and_turns_take_sides(stage: Stage) -> None:
    stage.compare("10+8x1")
    runs: list[tuple[str, int]] = []
    for done in stage.timed():
        kind = 0 if done.kind == "prefill" else 1 + (done.cached - 10) // 4
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


def test_ratios_are_taken_between_neighbours(stage: Stage) -> None:
    """Whole minutes are slow, for both sides: ratios of neighbours are all that is left alone."""
    rounds = {"dense": 0, "planned": 0}

    def minutes(stage: Stage, done: Pass) -> float:
        rounds[done.side] += done.kind == "prefill"
        return (1.5 if done.side == "dense" else 1.0) * 3.0 ** rounds[done.side]

    stage.takes = minutes
    found = stage.compare()
    assert found.speedup.decode_interval == pytest.approx((1.5, 1.5))
    assert found.speedup.prefill_interval == pytest.approx((1.5, 1.5))


def test_both_sides_read_the_same_new_prompt_each_round(stage: Stage) -> None:
    stage.compare(seed=3)
    dense, planned = (
        [done.tokens for done in stage.timed(side) if done.kind == "prefill"]
        for side in ("dense", "planned")
    )
    assert len(dense) == 6
    assert all(torch.equal(a, b) for a, b in zip(dense, planned, strict=True))
    assert not torch.equal(dense[0], dense[1])


def test_the_seed_sets_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    def prompts(seed: int) -> torch.Tensor:
        with monkeypatch.context() as patch:
            stage = Stage.of(patch)
            stage.compare(plan=False, seed=seed)
        return torch.stack([done.tokens for done in stage.timed() if done.kind == "prefill"])

    assert torch.equal(prompts(3), prompts(3))
    assert not torch.equal(prompts(3), prompts(4))


def _only(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (timed, memory):
        monkeypatch.setattr(module, "available_bytes", lambda device: size)


@pytest.mark.parametrize("together", [True, False])
def test_caches_that_do_not_fit_together_live_one_after_the_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    dense, _ = stage.anatomies()
    workload = Workload.parse("10+8x2")
    both = cost.run_bytes(dense, workload) + cost.kv_bytes(dense, 18, 2)
    _only(both if together else both - 1, monkeypatch)
    alive = 0

    def watch(stage: Stage, done: Pass) -> float:
        nonlocal alive
        alive = max(alive, len({id(state) for p in stage.passes if (state := p.state())}))
        return 1.0

    stage.takes = watch
    found = stage.compare(str(workload))
    sides = [done.side for done in stage.timed()]
    changes = [b for a, b in pairwise(sides) if a != b]
    assert sides[0] == "dense"
    # One by one: dense planned | planned dense | dense planned | …
    assert len(changes) == (6 * 3 if together else 6)
    assert alive == (2 if together else 1)
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
    assert not stage.events
    stage.compare(fits)


def test_an_answer_that_never_fits_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _only(1, monkeypatch)
    with pytest.raises(WorkloadError, match="no shorter prompt"):
        stage.compare()


def test_too_few_rounds_are_refused(stage: Stage) -> None:
    with pytest.raises(WorkloadError, match="rounds"):
        stage.compare(rounds=5)


def test_another_models_plan_is_refused() -> None:
    with pytest.raises(PlanError):
        speed.compare_speed(build("llama"), drop(build("qwen2")), Workload(4, 2), machine=MACHINE)


def test_the_collector_runs_before_and_after_but_not_within(stage: Stage) -> None:
    running: set[bool] = set()

    def watch(stage: Stage, done: Pass) -> float:
        running.add(gc.isenabled())
        return 1.0

    stage.takes = watch
    assert gc.isenabled()
    stage.compare()
    assert running == {False}
    assert gc.isenabled()


def test_progress_reaches_its_total(stage: Stage) -> None:
    seen: dict[str, Any] = {"done": 0}

    class Watched(Progress):
        @contextmanager
        def task(self, label: str, total: int | None = None) -> Iterator[Callable[[], None]]:
            seen.update(label=label, total=total)
            yield lambda: seen.update(done=seen["done"] + 1)

    stage.compare("10+8x2", progress=Watched())
    assert seen == {"label": "speed 10+8x2", "total": seen["done"], "done": seen["done"]}


def test_a_yardstick_that_is_beaten_is_taken_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def profile(device: Any, dtype: Any, *, fresh: bool = False) -> Machine:
        asked.append(fresh)
        return replace(MACHINE, bandwidth=1e9 if fresh else 1.0)

    monkeypatch.setattr(speed, "profile", profile)
    found = speed.compare_speed(stage.model, None, Workload(10, 8, 2))
    assert asked == [False, True]
    assert found.dense.roofline_share < 1
    assert found.machine.bandwidth == 1e9
