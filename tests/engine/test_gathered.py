"""Buffers for the weights that answers keep: how many there are, whose they are, when they pay."""

import gc
from typing import Any

import pytest
import torch
from tests.engine.test_memory import alive, built, gpt2, llama, stored
from torch import Tensor, nn

from skimp.engine import Engine, gathered, ways
from skimp.engine.experts import Desk
from skimp.engine.gathered import Copies, bytes_of
from skimp.engine.guides import Gathered, InPlace
from skimp.engine.ways import Costs, expected
from skimp.errors import RequestError
from skimp.methods.experts.modules import NeuronsOut
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def planned(model: nn.Module, **section: Any) -> Plan:
    return Plan.empty(Anatomy.of(model)).with_section("experts", {"keep": 0.5, **section})


def engine_of(config: Any = llama, experts: Any = "gathered", **section: Any) -> Engine:
    model = built(config())
    return Engine(model, planned(model, **section), decode="eager", experts=experts)


def copies_of(engine: Engine) -> Copies:
    desk: Any = engine._desk
    assert isinstance(desk, Desk)
    assert desk._copies is not None
    return desk._copies


def buffers(engine: Engine) -> list[Tensor]:
    found = []
    for copy in copies_of(engine).layers.values():
        found += [t for pair in copy.inputs for t in pair if t is not None] + [copy.output]
    return found


@pytest.mark.parametrize("config", [llama, gpt2])
def test_buffers_are_made_once(config: Any) -> None:
    """What an engine holds grows by one set of them, and by nothing more with further prompts."""
    engine = engine_of(config)
    engine.prefill([[1, 2, 3]], 2)
    gc.collect()
    before = sum(stored(alive()).values())
    engine.generate([[1, 2, 3]], 3)
    way = engine.experts_way()
    assert way is not None
    gc.collect()
    once = stored(alive())
    held = sum(once.values()) - before
    assert held == way.bytes == copies_of(engine).bytes == sum(stored(buffers(engine)).values())
    half = sum(p.nbytes for n, p in engine.model.named_parameters() if "mlp" in n) / 2
    assert way.bytes == pytest.approx(half, rel=0.01)
    for prompt in ([4, 5], [7] * 40, [9, 8, 7]):
        engine.generate([prompt], 3)
        gc.collect()
        assert stored(alive()) == once


def test_a_layer_that_keeps_all_is_not_copied() -> None:
    """Its width is no multiple of the block, so it keeps every neuron."""
    model = built(llama())
    plan = planned(model, keep=[0.5] * 5 + [1.0])
    engine = Engine(model, plan, decode="eager", experts="gathered")
    outputs = [m for m in engine.model.modules() if isinstance(m, NeuronsOut)]
    whole = outputs[0]
    whole.section = type(whole.section)(keep=0.9999)  # all but none of 1,024
    assert whole.section.count(whole.layer, whole.width) == whole.width - 1
    whole.section = type(whole.section)(block=48)
    engine.generate([[1, 2, 3]], 3)
    copies = copies_of(engine)
    assert set(copies.layers) == {0, 1, 2, 3, 4}
    assert copies.layers[0].output is whole.weight
    assert copies.bytes == 4 * 3 * 512 * 128 * 4


def test_the_buffers_hold_the_rows_of_who_decoded_last() -> None:
    engine = engine_of()
    states = [engine.prefill([prompt], 4)[1] for prompt in ([1, 2, 3], [9, 8, 7])]
    for state in (*states, *states):
        engine.decode(state, torch.tensor([4]))
        rows = state.experts.chosen[2].rows
        weight = engine.model.model.layers[2].mlp.down_proj.weight
        assert torch.equal(copies_of(engine).layers[2].output, weight[rows.long()])


def test_rows_are_copied_once_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, taken = engine_of(refresh=2), []
    inner = gathered._copy
    monkeypatch.setattr(gathered, "_copy", lambda *args: taken.append(inner(*args)))
    engine.generate([[1, 2, 3]], 3)  # two steps, on one choice
    assert len(taken) == 6 * 3
    engine.generate([[1, 2, 3]], 6)  # the third step of five reads all; a new choice follows
    assert len(taken) == 3 * 6 * 3


def test_a_copy_that_failed_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    wanted = engine.generate([[1, 2, 3]], 4)
    _, other = engine.prefill([[9, 8, 7]], 4)
    with monkeypatch.context() as patch:
        patch.setattr("skimp.engine.gathered._copy", _fails)
        with pytest.raises(RuntimeError, match="no more"):
            engine.decode(other, torch.tensor([1]))
    assert copies_of(engine).owner is None
    assert not copies_of(engine).lock.locked()
    assert engine.generate([[1, 2, 3]], 4) == wanted


def _fails(*args: object) -> None:
    raise RuntimeError("no more")


@pytest.mark.parametrize(
    ("costs", "tokens", "name"),
    [
        (Costs(in_place=2.0, gathered=1.0, copy=31.0), 32, "gathered"),
        (Costs(in_place=2.0, gathered=1.0, copy=32.0), 32, "in place"),
        (Costs(in_place=2.0, gathered=1.0, copy=32.0), 33, "gathered"),
        (Costs(in_place=1.0, gathered=1.0, copy=0.0), 1000, "in place"),
        (Costs(in_place=1.0, gathered=2.0, copy=0.0), 1000, "in place"),
    ],
)
def test_copies_must_pay_within_an_answer(costs: Costs, tokens: int, name: str) -> None:
    way = costs.way(tokens, 7)
    assert (way.name, way.bytes) == (name, 7 if name == "gathered" else 0)
    assert (way.in_place_s, way.gathered_s) == (costs.in_place, costs.gathered)
    assert (way.copy_s, way.tokens) == (costs.copy, tokens)


def test_what_a_choice_is_expected_to_serve() -> None:
    assert expected(room=1, refresh=0) == 32
    assert expected(room=100, refresh=0) == 100
    assert expected(room=100, refresh=16) == 16


class Clock:
    """Stands still but for what the calls that are watched take."""

    def __init__(self, patch: pytest.MonkeyPatch, **costs: float) -> None:
        self.now = 0.0
        patch.setattr(ways, "clock", lambda: self.now)
        self._slow(patch, InPlace, "leave", costs["in_place"])
        self._slow(patch, Gathered, "leave", costs["gathered"])
        self._slow(patch, Copies, "take", costs["copy"])

    def _slow(self, patch: pytest.MonkeyPatch, kind: Any, name: str, cost: float) -> None:
        inner = getattr(kind, name)

        def slowed(*args: Any) -> Any:
            self.now += cost
            return inner(*args)

        patch.setattr(kind, name, slowed)


@pytest.mark.parametrize(
    ("room", "gathered", "name"),
    [
        (1, 0.5, "gathered"),  # 9 s a token; 32 tokens are expected all the same
        (1, 1.0, "in place"),
        (90, 1.5, "in place"),
        (91, 1.5, "gathered"),
        (500, 2.0, "in place"),
    ],
)
def test_the_clock_decides(
    monkeypatch: pytest.MonkeyPatch, room: int, gathered: float, name: str
) -> None:
    """Figures of the three layers tried are reckoned for all six, of which a copy takes 270 s."""
    Clock(monkeypatch, in_place=2.0, gathered=gathered, copy=135.0)
    engine = engine_of(experts="auto")
    _, state = engine.prefill([[1, 2, 3]], room)
    assert engine.experts_way() is None
    engine.decode(state, torch.tensor([4]))
    way = engine.experts_way()
    assert way is not None
    assert (way.name, way.tokens) == (name, max(room, 32))
    assert (way.in_place_s, way.gathered_s, way.copy_s) == (12.0, 6 * gathered, 270.0)
    assert (way.bytes > 0) == (name == "gathered")


def test_it_is_measured_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = engine_of(experts="auto", batch="shared"), []
    inner = ways.measure
    monkeypatch.setattr(
        "skimp.engine.experts.measure", lambda *a, **k: asked.append(a[2]) or inner(*a, **k)
    )
    for batch in (1, 2, 1, 2):
        engine.generate([[1, 2, 3]] * batch, 4)
    assert asked == [1, 2]


def test_copies_that_do_not_fit_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, in_place=2.0, gathered=0.0, copy=0.0)
    monkeypatch.setattr("skimp.engine.experts.available_bytes", lambda device: 1000)
    engine = engine_of(experts="auto")
    engine.generate([[1, 2, 3]], 3)
    way = engine.experts_way()
    assert way is not None
    assert (way.name, way.in_place_s) == ("in place", None)


def test_the_native_step_reads_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skimp.engine.experts.measure", None)  # would raise if it were called
    model = built(llama())
    engine = Engine(model, planned(model))
    assert engine.warm_up() is None
    engine.generate([[1, 2, 3]], 4)
    assert engine.experts_way() is None
    assert Engine(model, planned(model), experts="gathered").path() == "torch"
    with pytest.raises(RequestError, match="experts: 'gathered' is for decoding by torch"):
        Engine(model, planned(model), decode="native", experts="gathered")


def test_an_unknown_way_is_refused() -> None:
    asked: Any = "copied"
    with pytest.raises(RequestError, match="experts: 'copied' is no way to read weights"):
        Engine(built(llama()), experts=asked)


def test_what_buffers_would_take_is_foretold() -> None:
    engine = engine_of(gpt2)
    engine.generate([[1, 2, 3]], 3)
    assert bytes_of(copies_of(engine)._chooser) == copies_of(engine).bytes
