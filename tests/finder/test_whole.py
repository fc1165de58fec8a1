"""Choices of the whole model: how they are judged, what they save, and when they are taken."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests import families, tiny
from torch import nn

from skimp.finder.choices import WHOLE, Choice, Gain, Setting, offers, plan_of
from skimp.finder.clock import Clock
from skimp.finder.judge import SUMS, Judge, fit, quality
from skimp.finder.knapsack import pick
from skimp.finder.menu import Menu
from skimp.finder.prices import Bytes
from skimp.finder.state import State
from skimp.finder.texts import Windows, cut
from skimp.finder.whole import look, share_read, whole_offers
from skimp.measure import cost
from skimp.measure.statistics import Interval
from skimp.methods.exit.costs import Costs
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import SILENT
from skimp.workload import Workload

WORK = Workload.parse("64+32x1")


@pytest.fixture
def model() -> nn.Module:
    return families.build("llama")


def windows() -> Windows:
    random = torch.Generator().manual_seed(3)
    documents = [torch.randint(2, families.VOCABULARY, (30,), generator=random) for _ in range(5)]
    return cut(documents, 5, "judge")


def exits(model: nn.Module, threshold: float, probe: int | None = None) -> Plan:
    anatomy = Anatomy.of(model)
    last = anatomy.dense_layers - 1 if probe is None else probe
    section: dict[str, Any] = {"probe": [last], "rule": "threshold", "translator": "plain"}
    return Plan.empty(anatomy).with_section("exit", {**section, "threshold": threshold})


def test_exits_that_nobody_takes_are_the_dense_model(model: nn.Module) -> None:
    judge = Judge(model, windows())
    dense, never = judge(None), judge(exits(model, float("inf")))
    assert torch.equal(never[:, :SUMS], dense)
    assert never.shape[1] == SUMS + 1 and not never[:, SUMS:].any()


def test_every_token_may_leave_before_the_full_head(model: nn.Module) -> None:
    """A probe of the full head after the last layer changes nothing, however many leave there."""
    judge = Judge(model, windows())
    always = judge(exits(model, -1.0))
    assert torch.equal(always[:, SUMS], always[:, 0])
    torch.testing.assert_close(always[:, :SUMS], judge(None), rtol=1e-4, atol=1e-4)


def test_tokens_that_leave_too_early_cost_what_they_are_less_likely_by(model: nn.Module) -> None:
    judge = Judge(model, windows())
    found = quality(judge(exits(model, -1.0, probe=0)).tolist())
    assert found["left"] == [1.0]
    assert found["kl"] > 0
    # With one token more agreeing, nothing less would be charged: none is charged below zero.
    assert found["agreement"] < 1


def test_bytes_are_those_of_the_steps_that_are_run(model: nn.Module) -> None:
    anatomy = Anatomy.of(model)
    section = exits(model, 0.5).sections["exit"]
    none = share_read({"exit": section}, anatomy, WORK, [0.0])
    half = share_read({"exit": section}, anatomy, WORK, [0.5])
    assert none > 1 > 0  # what is probed is read besides
    head = anatomy.head.bytes
    layers = cost.decode_cost(anatomy, WORK).bytes
    assert half == pytest.approx(none - 0.5 * head / layers, rel=0.05)
    assert share_read({}, anatomy, WORK, []) == 1.0


def test_a_step_is_as_deep_as_its_deepest_sequence() -> None:
    """With more sequences fewer steps end early, if each leaves as often as before."""
    every = [Costs((1.0,) * 4, 2.0, {0: 0.1}, batch) for batch in (1, 2, 8)]
    shares = [costs.with_probes([1], [0.5], 0) / costs.step for costs in every]
    assert shares == pytest.approx([4.1 / 6, 5.1 / 6, (2.1 + 4 * (1 - 0.5**8)) / 6])


def test_the_knapsack_takes_what_pays(model: nn.Module) -> None:
    choice = offers()["exit"].choices(model, Anatomy.of(model))[0]
    menu = Menu.of(model, WORK, Bytes()).with_whole([Gain(choice, 0.1, 1e-6)])
    savings = menu.savings
    assert savings[WHOLE][choice] == pytest.approx(0.1 * menu.dense)
    harms = {
        place: {each: (0.0 if each is None else 1e-6 if place == WHOLE else 1.0) for each in own}
        for place, own in savings.items()
    }
    chosen = pick(harms, savings, 0.05 * menu.dense)
    assert chosen == {WHOLE: choice}
    assert menu.speedup(chosen) == pytest.approx(1 / 0.9)


def test_why_nothing_is_offered_is_said(model: nn.Module, tmp_path: Any) -> None:
    text = tiny.calibration(count=4)
    setting = Setting(text, windows(), WORK, by_time=False)
    state = State(tmp_path / "s", {})
    gains, refused = look(model, setting, state)
    assert gains == [] and [each["offer"] for each in refused] == ["exit"]
    assert "12 documents" in refused[0]["reason"]
    assert look(model, setting, state) == (gains, refused)


def test_exits_are_fitted_on_what_the_plan_leaves(model: nn.Module) -> None:
    anatomy = Anatomy.of(model)
    last = Choice(-1, "model", "exit", f"0.8@{anatomy.dense_layers - 1}/0")
    drop = next(c for c in offers()["drop"].choices(model, anatomy) if c.layer == 0)
    plan = fit(model, plan_of({WHOLE: last, drop.place: drop}, anatomy), tiny.calibration(count=24))
    assert plan.sections["exit"]["agreement"] == 0.8
    assert any(name.startswith("drop.") for name in plan.values)
    assert any(name.startswith("exit.") for name in plan.values)
    sums = Judge(model, windows())(plan)
    assert sums.shape[1] == SUMS + 1 and bool(sums.isfinite().all())


class FakeClock:
    """Says in turn how fast plans run."""

    says: Iterator[float]

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def speedup(self, plan: Plan) -> Interval:
        assert "exit" in plan.sections
        speed = next(self.says)
        return Interval(speed, speed, speed)


def test_exits_are_timed_once(
    model: nn.Module, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one seed gives one plan where time counts, too."""
    monkeypatch.setattr("skimp.finder.clock.root", lambda: tmp_path)
    calls: list[int] = []

    def timed(*_: Any) -> tuple[float, dict[int, float]]:
        calls.append(1)
        return 1.0, {0: 0.01}

    monkeypatch.setattr("skimp.finder.offers.exit.timed", timed)
    monkeypatch.setattr("skimp.finder.offers.exit.Clock", FakeClock)
    monkeypatch.setattr(FakeClock, "says", iter([1.25] * 4), raising=False)
    setting = Setting(tiny.calibration(count=24), windows(), WORK, by_time=True)
    gains, reason = whole_offers()["exit"].look(model, setting, SILENT)
    again = whole_offers()["exit"].look(model, setting, SILENT)
    assert again == (gains, reason)
    assert gains and [gain.saved for gain in gains] == pytest.approx([0.2] * len(gains))
    assert len(calls) == 1


def test_exits_that_are_no_faster_are_not_offered(
    model: nn.Module, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever probes and bytes foretell."""
    monkeypatch.setattr("skimp.finder.clock.root", lambda: tmp_path)
    monkeypatch.setattr("skimp.finder.offers.exit.timed", lambda *_: (1.0, {0: 0.01}))
    monkeypatch.setattr("skimp.finder.offers.exit.Clock", FakeClock)
    monkeypatch.setattr(FakeClock, "says", iter([0.98] * 4), raising=False)
    setting = Setting(tiny.calibration(count=24), windows(), WORK, by_time=True)
    gains, refused = look(model, setting, State(tmp_path / "s", {}))
    assert gains == []
    assert "no faster" in refused[0]["reason"]


def test_what_a_probe_costs_decides(
    model: nn.Module, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skimp.finder.clock.root", lambda: tmp_path)
    monkeypatch.setattr("skimp.finder.offers.exit.timed", lambda *_: (1.0, {0: 50.0}))
    setting = Setting(tiny.calibration(count=24), windows(), WORK, by_time=True)
    gains, refused = look(model, setting, State(tmp_path / "s", {}))
    assert gains == []
    assert "no probe pays" in refused[0]["reason"]


def test_a_clock_reads_several_texts_where_tokens_leave(model: nn.Module) -> None:
    text = torch.arange(200) % families.VOCABULARY
    found = Clock(model, Workload(8, 24, 1), text=text).speedup(exits(model, -1.0, probe=0))
    assert 0 < found.low <= found.estimate <= found.high


@pytest.mark.parametrize(
    ("spread", "within", "timings"), [(0.001, 0.03, 1), (0.5, None, 1), (0.5, 0.03, 6)]
)
def test_a_clock_goes_on_until_a_speed_is_known(
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    spread: float,
    within: float | None,
    timings: int,
) -> None:
    calls: list[int] = []

    def ratios(*_: Any, seed: int, **__: Any) -> list[float]:
        calls.append(seed)
        return [1.3 + spread * (each / 5.5 - 1) for each in range(12)]

    monkeypatch.setattr("skimp.finder.clock.decoding_ratios", ratios)
    found = Clock(model, WORK).speedup(Plan.empty(Anatomy.of(model)), within=within)
    assert found.estimate == pytest.approx(1.3)
    assert calls == list(range(timings))
