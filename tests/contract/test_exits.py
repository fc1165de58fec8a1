"""The laws on early exits: which tokens leave is the engine's business, request by request."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.cases import ROUTED
from tests.contract.examples import examples
from tests.contract.leaving import left
from tests.contract.runs import assert_close, make_batch, uncached
from tests.contract.test_engine import CUT, PLAIN, decode_by, prompts, served
from tests.contract.test_experts import FUSED
from tests.families import SAMPLES, WINDOW, Sample
from torch import Tensor, nn

import skimp
from skimp.engine import Engine, State
from skimp.engine.attention import Unsupported
from skimp.engine.runners import cache_tensors
from skimp.errors import PlanError
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

BATCH = make_batch([WINDOW + 9, WINDOW + 6, WINDOW + 3], seed=5)
SINGLE = make_batch([WINDOW + 7], seed=6)
PROBES = [0, 1]
# Nothing stands between their last layer and the head that a probe could go through.
REFUSED = {"opt-post-norm"}
NEVER = float("inf")


def exits(model: nn.Module, sections: dict[str, Any] | None = None, **fields: Any) -> Plan:
    """A plan of the published threshold rule, which needs no fit."""
    section: dict[str, Any] = {
        "probe": PROBES,
        "rule": "threshold",
        "translator": "plain",
        "threshold": NEVER,
        "max_pending": 3,  # as many steps over several columns are made ready
    }
    plan = Plan.empty(Anatomy.of(model)).with_section("exit", {**section, **fields})
    for name, other in (sections or {}).items():
        plan = plan.with_section(name, other)
    return plan


@pytest.fixture
def probed(sample: Sample) -> Sample:
    """The families whose layers can be probed."""
    if sample.name in REFUSED:
        pytest.skip(f"{sample.name} has no final norm")
    return sample


def drawn_depths(shape: tuple[int, int], layers: int, seed: int, stays: float = 0.3) -> Tensor:
    """After how many layers [B, T] tokens leave; all of them in a prompt of CUT columns."""
    random = torch.Generator().manual_seed(seed)
    places = torch.tensor([place + 1 for place in PROBES])
    found = places[torch.randint(len(places), shape, generator=random)]
    found[torch.rand(shape, generator=random) < stays] = layers
    found[:, :CUT] = layers
    return found


@contextmanager
def scripted(engine: Engine, depths: Tensor) -> Iterator[None]:
    """Have the tokens of an engine leave as `depths` [B, T] says."""
    assert engine.exits is not None
    engine.exits.script = lambda column, place: depths[:, column] <= place
    yield
    engine.exits.script = None


def ways(engine: Engine, batch: int, sample: Sample) -> list[str]:
    reason = engine.warm_up(batch)
    if sample.name not in ROUTED:
        assert (reason is not None) == (sample.name in PLAIN), reason
    return ["torch"] if reason is not None else ["torch", "native"]


def test_a_bar_never_reached_is_the_dense_model(model: nn.Module, probed: Sample) -> None:
    """Law 1, bit by bit."""
    dense, engine = Engine(model), Engine(model, exits(model))
    for batch in (BATCH, SINGLE):
        for each in (dense, engine):
            each.warm_up(len(batch.ids))
        assert torch.equal(served(engine, batch, CUT), served(dense, batch, CUT))


def test_families_without_a_final_norm_are_refused(model: nn.Module, sample: Sample) -> None:
    if sample.name in REFUSED:
        with pytest.raises(PlanError, match=r"exit: .* no layer of it can be probed"):
            Engine(model, exits(model))
    else:
        assert Engine(model, exits(model)).exits is not None


@pytest.mark.parametrize("kv", ("exact", "propagate"))
def test_tokens_are_those_of_the_layer_they_leave(
    model: nn.Module, probed: Sample, kv: str
) -> None:
    """Laws 2 and 3: batches, padding and windows, natively and by torch."""
    engine = Engine(model, exits(model, kv=kv, max_pending=3))
    layers = len(engine.anatomy.layers)
    for batch, seed in ((BATCH, 1), (SINGLE, 2)):
        depths = drawn_depths((len(batch.ids), batch.length), layers, seed)
        wanted = left(probed, model, batch, depths, propagate=kv == "propagate")
        wanted = wanted[:, CUT - 1 :].flatten(0, 1)
        for way in ways(engine, len(batch.ids), probed):
            with pytest.MonkeyPatch.context() as patch, scripted(engine, depths):
                decode_by(engine, way, patch)
                assert_close(served(engine, batch, CUT), wanted, name=f"{way}, {kv}")


@pytest.mark.parametrize("kv", ("exact", "propagate"))
@pytest.mark.parametrize("name", ("mistral", "qwen2", "gemma2"))
def test_windows_hold_in_transformers_own_cache(
    name: str, kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every, a later or the first layer has one; families unknown to us come by it so."""

    def refuse(*args: Any) -> Any:
        raise Unsupported("made up")

    monkeypatch.setattr("skimp.engine.engine.slot_shapes", refuse)
    sample = SAMPLES[name]
    model = sample.build()
    engine = Engine(model, exits(model, kv=kv, max_pending=3))
    assert engine.plain is not None
    depths = drawn_depths((3, BATCH.length), len(engine.anatomy.layers), 1)
    wanted = left(sample, model, BATCH, depths, propagate=kv == "propagate")
    with scripted(engine, depths):
        found = served(engine, BATCH, CUT)
    assert_close(found, wanted[:, CUT - 1 :].flatten(0, 1), name=f"{name}, {kv}")


def test_the_exact_cache_is_the_dense_models(model: nn.Module, probed: Sample) -> None:
    """Once nothing is pending; and what is pending is bounded."""
    dense, engine = Engine(model), Engine(model, exits(model, max_pending=2))
    layers = len(engine.anatomy.layers)
    depths = drawn_depths((3, BATCH.length), layers, 3, stays=0.1)
    for way in ways(engine, 3, probed):
        with pytest.MonkeyPatch.context() as patch, scripted(engine, depths):
            decode_by(engine, way, patch)
            decode_by(dense, "torch", patch)
            _, wanted = whole(dense)
            _, found = whole(engine, pending=2)
        pairs = zip(cache_tensors(found.cache), cache_tensors(wanted.cache), strict=True)
        for ours, theirs in pairs:
            assert_close(ours, theirs, name=f"{way}, the cache")


def whole(engine: Engine, pending: int = 0) -> tuple[Tensor, State]:
    """Decode BATCH to its end, settled; at most `pending` columns may wait on the way."""
    logits, state = engine.prefill(prompts(BATCH, CUT), BATCH.length - CUT + 1)
    most = 0
    for column in range(CUT, BATCH.length):
        logits = engine.decode(state, BATCH.ids[:, column])
        most = max(most, state.exits.waiting if state.exits else 0)
    assert most == pending
    engine.settle(state)
    assert state.exits is None or not state.exits.pending
    return logits, state


def test_layers_left_out_are_not_run(model: nn.Module, probed: Sample) -> None:
    """Law 3: before anything makes up for them, their caches hold nothing of the token."""
    engine = Engine(model, exits(model))
    ran: list[int] = []
    kind = type(probed.blocks(engine.model)[0]).__mro__[1]
    logits, state = engine.prefill(prompts(SINGLE, CUT), 4)
    with pytest.MonkeyPatch.context() as patch, scripted(engine, torch.full((1, CUT + 4), 2)):
        decode_by(engine, "torch", patch)
        forward: Any = kind.forward

        def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            ran.append(self.gate[0])  # type: ignore[index]
            return forward(self, *args, **kwargs)

        patch.setattr(kind, "forward", counted)
        engine.decode(state, logits.argmax(-1))
        assert ran == [0, 1] and (state.exits.ran, state.exits.depths) == (2, [2])
        engine.decode(state, logits.argmax(-1))
        assert ran == [0, 1, 0, 1]
        engine.settle(state)
        assert ran[4:] == list(range(2, len(engine.anatomy.layers)))


@pytest.mark.parametrize("kv", ("exact", "propagate"))
def test_the_batch_decides_nothing(model: nn.Module, probed: Sample, kv: str) -> None:
    """Law 4: a sequence leaves where it would alone, and interleaved requests share nothing."""
    rows = prompts(BATCH, CUT + 2)
    tokens = torch.randint(3, 60, (6, len(rows)), generator=torch.Generator().manual_seed(9))
    bar = middling(model, rows, tokens)
    engine = Engine(model, exits(model, threshold=bar, kv=kv, max_pending=2))
    together, depths = steps(engine, rows, tokens)
    states = [engine.prefill([row], 8) for row in rows]
    found: list[list[Tensor]] = [[logits[0]] for logits, _ in states]
    apart: list[list[int]] = []
    for step in tokens:
        for row, (_, state) in enumerate(states):
            found[row].append(engine.decode(state, step[row : row + 1])[0])
        apart.append([state.exits.depths[0] for _, state in states])
    assert apart == depths
    assert len({depth for step in depths for depth in step}) > 1, "all tokens leave at one depth"
    for row in range(len(rows)):
        assert_close(torch.stack(found[row]), together[:, row])


@pytest.mark.parametrize("kv", ("exact", "propagate"))
def test_who_has_ended_holds_nobody_up(model: nn.Module, probed: Sample, kv: str) -> None:
    """A sequence that nobody listens to changes nothing for the others, and keeps no layer on."""
    engine = Engine(model, exits(model, kv=kv))
    (row, *_) = prompts(BATCH, CUT)
    rows = [row[::-1], row]
    tokens = torch.tensor([[4, 5], [6, 7], [8, 9]])
    layers = len(engine.anatomy.layers)
    depths = torch.tensor([[layers, 2, layers], [2, layers, 1]])
    both = []
    with scripted(engine, torch.cat([torch.zeros(2, CUT), depths], 1)):
        _, state = engine.prefill(rows, 4)
        state.idle = torch.tensor([True, False])
        for step in tokens:
            both.append(engine.decode(state, step)[1])
            assert state.exits.ran == depths[1, len(both) - 1]
    with scripted(engine, torch.cat([torch.zeros(1, CUT), depths[1:]], 1)):
        _, state = engine.prefill(rows[1:], 4)
        alone = [engine.decode(state, step[1:])[0] for step in tokens]
    assert_close(torch.stack(both), torch.stack(alone))


def steps(engine: Engine, rows: list[list[int]], tokens: Tensor) -> tuple[Tensor, list[list[int]]]:
    """Logits [1 + steps, B, V] and the depths of every step."""
    logits, state = engine.prefill(rows, len(tokens) + 2)
    found, depths = [logits], []
    for step in tokens:
        found.append(engine.decode(state, step))
        depths.append(state.exits.depths)
    return torch.stack(found), depths


def middling(model: nn.Module, rows: list[list[int]], tokens: Tensor) -> float:
    """A bar that about half of the probes reach, and none nearly."""
    engine, seen = Engine(model, exits(model)), []
    assert engine.exits is not None
    look = engine.exits.probes.look

    def noted(*args: Any) -> Any:
        found = look(*args)
        seen.append(found.score)
        return found

    engine.exits.probes.look = noted  # type: ignore[method-assign]
    steps(engine, rows, tokens)
    scores = torch.cat(seen).sort().values
    middle = scores[len(scores) // 4 : -len(scores) // 4]
    gap = int(middle.diff().argmax())
    return float(middle[gap : gap + 2].mean())


def test_composes_with_drop(model: nn.Module, probed: Sample) -> None:
    """Branches and whole layers gone; probes stand after the layers that are left of theirs."""
    drop = {"attention": [0], "ffn": [1]}
    engine = Engine(model, exits(model, {"drop": drop}))
    layers = len(engine.anatomy.layers)
    depths = drawn_depths((3, BATCH.length), layers, 4)
    with skimp.apply(model, Plan.empty(Anatomy.of(model)).with_section("drop", drop)):
        wanted = left(probed, model, BATCH, depths)[:, CUT - 1 :].flatten(0, 1)
    with scripted(engine, depths):
        for way in ways(engine, 3, probed):
            with pytest.MonkeyPatch.context() as patch:
                decode_by(engine, way, patch)
                assert_close(served(engine, BATCH, CUT), wanted, name=way)
    gone = Engine(model, exits(model, {"drop": {"layers": [1]}}))
    assert gone.exits is not None and gone.exits.places == {0, 1, len(gone.anatomy.layers)}


@pytest.mark.parametrize(("refresh", "fill"), [(0, "zero"), (3, "mean")])
def test_composes_with_experts(model: nn.Module, probed: Sample, refresh: int, fill: str) -> None:
    """Caught up by the experts of their own request: the cache is that of experts alone."""
    if probed.name in ROUTED:
        pytest.skip(f"{probed.name} routes its tokens to experts of its own")
    section = {"experts": {"keep": 0.5, "refresh": refresh, "fill": fill}}
    alone = Engine(model, exits(model, section))
    engine = Engine(model, exits(model, section, max_pending=2))
    depths = drawn_depths((3, BATCH.length), len(engine.anatomy.layers), 7)
    reason = engine.warm_up(3)
    assert (reason is not None) == (probed.name in PLAIN | FUSED), reason
    for way in ["torch"] if reason is not None else ["torch", "native"]:
        with pytest.MonkeyPatch.context() as patch:
            decode_by(engine, way, patch)
            decode_by(alone, "torch", patch)
            _, wanted = whole(alone)
            with scripted(engine, depths):
                _logits, state = engine.prefill(prompts(BATCH, CUT), BATCH.length - CUT + 1)
                for column in range(CUT, BATCH.length):
                    engine.decode(state, BATCH.ids[:, column])
                engine.settle(state)
        pairs = zip(cache_tensors(state.cache), cache_tensors(wanted.cache), strict=True)
        for ours, theirs in pairs:
            assert_close(ours, theirs, name=f"{way}, the cache")


def test_what_all_layers_read_again_has_not_left() -> None:
    """A refresh of experts says nothing of the step before it."""
    model = SAMPLES["llama"].build()
    engine = Engine(model, exits(model, {"experts": {"keep": 0.5, "refresh": 2}}, threshold=0.0))
    layers = len(engine.anatomy.layers)
    logits, state = engine.prefill(prompts(SINGLE, CUT), 4)
    found = []
    for _ in range(4):
        logits = engine.decode(state, logits.argmax(-1))
        found.append((state.exits.ran, *state.exits.depths, state.exits.head))
    early, full = (1, 1, False), (layers, layers, True)
    assert found == [early, early, full, early]


@examples(15)
@given(data=st.data())
def test_generated_exits(data: st.DataObject) -> None:
    sample = SAMPLES[data.draw(st.sampled_from(sorted(set(SAMPLES) - REFUSED)))]
    model = sample.build()
    pads = data.draw(st.lists(st.integers(0, CUT - 1), max_size=2))
    total = data.draw(st.integers(CUT + 1, WINDOW + 9))
    batch = make_batch([total, *(total - pad for pad in pads)], seed=data.draw(st.integers(0, 9)))
    kv, most = data.draw(st.sampled_from(["exact", "propagate"])), data.draw(st.integers(1, 6))
    engine = Engine(model, exits(model, kv=kv, max_pending=most))
    shape = (len(batch.ids), batch.length)
    seed, stays = data.draw(st.integers(0, 99)), data.draw(st.floats(0, 0.6))
    depths = drawn_depths(shape, len(engine.anatomy.layers), seed, stays)
    wanted = left(sample, model, batch, depths, propagate=kv == "propagate")
    for way in ways(engine, shape[0], sample):
        with pytest.MonkeyPatch.context() as patch, scripted(engine, depths):
            decode_by(engine, way, patch)
            assert_close(served(engine, batch, CUT), wanted[:, CUT - 1 :].flatten(0, 1), name=way)


def test_a_model_by_itself_knows_no_exits(model: nn.Module, probed: Sample) -> None:
    """Law 6; no folder can hold them either (law 5)."""
    from skimp.methods.folder import save

    before = uncached(model, BATCH)
    plan = exits(model, threshold=0.0)
    with skimp.apply(model, plan):
        assert torch.equal(uncached(model, BATCH), before)
        with pytest.raises(PlanError, match="exit: "):
            save(model, None, plan, "never-written")
    assert torch.equal(uncached(model, BATCH), before)
