"""Law 4 on batches whose sequences come and go: each is served as if it were alone."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.cases import ROUTED, Case, plan_for
from tests.contract.examples import Drawn, drawn, examples
from tests.contract.runs import assert_close
from tests.contract.test_engine import PLAIN, decode_by
from tests.contract.test_exits import exits, middling
from tests.contract.test_experts import planned
from tests.families import VOCABULARY, WINDOW, Sample
from torch import Tensor, nn

from skimp.engine import Engine, State, batching
from skimp.engine.batching import Batch, Seat, can_join, rows_for
from skimp.engine.runners import cache_tensors
from skimp.errors import RequestError
from skimp.models.anatomy import Anatomy

# Longer and shorter than the window, and one token; the last outgrows the batch it comes to.
LENGTHS = (WINDOW + 4, WINDOW - 2, 1, 26)
STEPS = 6
# Each brings something of its own: windows in all or some layers, learned positions, gate and up in
# one matrix, a cache of transformers' own, with ALiBi and without. The plan that drops is for all.
TRAITS = ("llama", "mistral", "gemma3_text", "opt", "phi3", "gpt2", "falcon-alibi", "falcon-7b")
traits = pytest.mark.parametrize("sample", TRAITS, indirect=True)
few = pytest.mark.parametrize("sample", ("llama", "mistral", "falcon-7b"), indirect=True)


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that rings wrap and grow within a few steps, and batches become smaller again."""
    monkeypatch.setattr(batching, "_STEP", 8)
    monkeypatch.setattr(batching, "_PATIENCE", 2)


@dataclass
class Told:
    """A sequence: its prompt, the tokens it is given step by step, and what it is told."""

    prompt: list[int]
    tokens: list[int]
    logits: list[Tensor] = field(default_factory=list)
    depths: list[int | None] = field(default_factory=list)

    @property
    def next(self) -> int:
        return self.tokens[len(self.logits) - 1]

    @property
    def done(self) -> bool:
        return len(self.logits) > len(self.tokens)


def sequences(lengths: tuple[int, ...] = LENGTHS, steps: int = STEPS, seed: int = 0) -> list[Told]:
    random = torch.Generator().manual_seed(seed)

    def drawn(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=random).tolist()

    return [Told(drawn(length), drawn(steps)) for length in lengths]


def go_on(engine: Engine, told: Told, state: State) -> None:
    told.logits.append(engine.decode(state, torch.tensor([told.next]))[0])
    told.depths.append(state.exits.depths[0] if state.exits else whole_depth(engine))


def whole_depth(engine: Engine) -> int | None:
    """What is said of a token that all layers read."""
    return None if engine.exits is None else engine.exits.layers


def read(engine: Engine, told: Told, room: int = 1) -> State:
    logits, state = engine.prefill([told.prompt], room)
    told.logits.append(logits[0])
    return state


def alone(engine: Engine, all_told: list[Told]) -> None:
    for told in all_told:
        state = read(engine, told, len(told.tokens) + 1)
        while not told.done:
            go_on(engine, told, state)


def step(batch: Batch, seats: dict[Seat, Told]) -> None:
    logits = batch.decode([seats[seat].next for seat in batch.seats])
    for seat, found in zip(batch.seats, logits, strict=True):
        seats[seat].logits.append(found)
        seats[seat].depths.append(seat.depth)


def together(engine: Engine, all_told: list[Told]) -> None:
    """One joins at every step but the first, at which two do; the second goes on alone for a step
    on its way and comes back; everyone leaves at its end."""
    batch, seats = Batch(engine), dict[Seat, Told]()
    waiting = list(enumerate(all_told))
    away: State | None = None
    strayer = all_told[1]

    def join(told: Told, state: State) -> None:
        (seat,) = batch.join(state, len(told.tokens) + 2 - len(told.logits))
        seats[seat] = told

    at = 0
    while waiting or batch.seats or away:
        for _, told in waiting[: 1 if at else 2]:
            join(told, read(engine, told))
        waiting = waiting[1 if at else 2 :]
        if at == 3:
            seat = next(seat for seat, told in seats.items() if told is strayer)
            away = batch.take(seat, 3)
            batch.leave(seat)
            go_on(engine, strayer, away)
        if at == 4 and away:
            join(strayer, away)
            away = None
        step(batch, seats)
        over = [seat for seat in batch.seats if seats[seat].done]
        if over:
            batch.leave(*over)
        at += 1
    assert batch.columns == 0


def hold(engine: Engine, sample: Sample, make: Callable[[], list[Told]] = sequences) -> None:
    """Hold every way of decoding together against decoding alone."""
    reasons = [engine.warm_up(rows) for rows in (1, 2, 4)]
    assert sample.name in PLAIN | ROUTED or engine.plain is None
    native = not any(reasons)
    for way in ("torch", "native") if native else ("torch",):
        one, other = make(), make()
        with pytest.MonkeyPatch.context() as patch:
            decode_by(engine, way, patch)
            alone(engine, one)
            together(engine, other)
        for index, (told, found) in enumerate(zip(one, other, strict=True)):
            assert len(found.logits) == STEPS + 1
            for at, (wanted, logits) in enumerate(zip(told.logits, found.logits, strict=True)):
                assert_close(logits, wanted, name=f"{way}, sequence {index}, step {at}")
            assert found.depths == told.depths, f"{way}, sequence {index}"


def test_who_comes_and_goes_is_served_as_if_alone(model: nn.Module, sample: Sample) -> None:
    """What stands in the place of what is dropped is no affair of the cache; other plans are drawn
    below."""
    hold(Engine(model, planned(model, drop={"attention": [1], "ffn": [1, 2]})), sample)


@few
def test_every_method_may_join(
    model: nn.Module, anatomy: Anatomy, sample: Sample, case: Case
) -> None:
    section = case.one(anatomy.dense_layers, "middle")
    hold(Engine(model, plan_for(case, section, anatomy)), sample)


@traits
@pytest.mark.parametrize(("refresh", "fill"), [(0, "zero"), (2, "mean")])
def test_experts_are_each_sequences_own(
    model: nn.Module, sample: Sample, refresh: int, fill: str
) -> None:
    """Those of its own prompt, chosen anew after as many of its own tokens."""
    section = {"keep": 0.5, "refresh": refresh, "fill": fill}
    hold(Engine(model, planned(model, experts=section)), sample)


@traits
@pytest.mark.parametrize(("kv", "refresh"), [("exact", None), ("propagate", None), ("exact", 3)])
def test_tokens_leave_where_they_would_alone(
    model: nn.Module, sample: Sample, kv: str, refresh: int | None
) -> None:
    drawn = sequences()
    tokens = torch.tensor([told.tokens for told in drawn]).T
    bar = middling(model, [told.prompt for told in drawn], tokens)
    more = {"experts": {"keep": 0.9, "refresh": refresh}} if refresh else {}
    engine = Engine(model, exits(model, more, threshold=bar, kv=kv, max_pending=2))
    hold(engine, sample)


@traits
def test_native_steps_are_the_same_bit_by_bit(sample: Sample) -> None:
    """In bfloat16 too, where a rounding more would soon make another text of it."""
    if sample.name in PLAIN:
        pytest.skip(f"{sample.name} decodes by torch")
    engine = Engine(sample.build(dtype=torch.bfloat16))
    assert not any(engine.warm_up(rows) for rows in (1, 2, 4))
    one, other = sequences(), sequences()
    alone(engine, one)
    together(engine, other)
    for told, found in zip(one, other, strict=True):
        assert all(map(torch.equal, found.logits, told.logits))


@examples(20)
@given(example=drawn(), data=st.data())
def test_generated_plans(example: Drawn, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=6).map(tuple))
    seed = data.draw(st.integers(0, 9))
    engine = Engine(example.model, example.plan)
    hold(engine, example.sample, lambda: sequences(lengths, seed=seed))


@few
def test_a_batch_of_prompts_joins_as_one(model: nn.Module) -> None:
    """And who is begun by others' side leaves it to join another's."""
    engine = Engine(model)
    one, other = sequences(), sequences()
    alone(engine, one)
    logits, state = engine.prefill([told.prompt for told in other[:3]], 1)
    for told, found in zip(other[:3], logits, strict=True):
        told.logits.append(found)
    batch = Batch(engine)
    seats = dict(zip(batch.join(state, STEPS + 1), other[:3], strict=True))
    for _ in range(3):
        step(batch, seats)
    second = Batch(engine)
    (seat,) = second.join(batch.take(batch.seats[1], 1), STEPS)
    batch.leave(batch.seats[1])
    seats[seat] = other[1]
    for _ in range(STEPS - 3):
        step(batch, seats)
        step(second, seats)
    for told, found in zip(one[:3], other, strict=False):
        assert_close(torch.stack(found.logits), torch.stack(told.logits))


@few
def test_nobody_is_there_for_ever(model: nn.Module) -> None:
    """A batch that is never empty goes on past any column, in slots of the size they began with."""
    engine = Engine(model)
    batch, seats, columns = Batch(engine), dict[Seat, Told](), set[int]()
    every = sequences((3,) * 30, steps=6)
    for told in every:
        seats[batch.join(read(engine, told), 7)[0]] = told
        for _ in range(2):
            step(batch, seats)
        columns.add(batch.columns)
        over = [seat for seat in batch.seats if seats[seat].done]
        if over:
            batch.leave(*over)
    assert max(columns) == (4 * 16 if engine.plain is None else 3 * 10)
    wanted = sequences((3,) * 30, steps=6)[-5:]
    alone(engine, wanted)
    for one, other in zip(wanted, every[-5:], strict=True):
        pairs = zip(one.logits, other.logits, strict=False)
        for theirs, ours in pairs:
            assert_close(ours, theirs)


@few
def test_what_is_no_number_stays_with_its_sequence(model: nn.Module) -> None:
    """Whoever comes to the place of one that went wrong finds nothing of it."""
    engine = Engine(model)
    batch, seats = Batch(engine), dict[Seat, Told]()
    first, bad, after = sequences((4, 5, 2))
    wanted, _, alike = sequences((4, 5, 2))
    alone(engine, [wanted, alike])
    for told in (first, bad):
        state = read(engine, told)
        if told is bad:
            with torch.inference_mode():
                for tensor in cache_tensors(state.cache):
                    tensor.fill_(torch.nan)
        seats[batch.join(state, STEPS + 1)[0]] = told
    step(batch, seats)
    batch.leave(batch.seats[1], spoilt=True)
    seats[batch.join(read(engine, after), STEPS + 1)[0]] = after
    while not after.done and not first.done:
        step(batch, seats)
    for one, other in ((wanted, first), (alike, after)):
        assert_close(torch.stack(other.logits), torch.stack(one.logits[: len(other.logits)]))


@few
def test_what_a_batch_shares_is_for_one_request(model: nn.Module) -> None:
    engine = Engine(model, planned(model, experts={"keep": 0.5, "batch": "shared"}))
    assert "experts.batch" in (can_join(engine) or "")
    one, other = sequences((5, 4)), sequences((5, 4))
    alone(engine, one)
    batch = Batch(engine)
    for told in other:
        assert batch.fits(20)
        seats = {batch.join(read(engine, told, STEPS + 1), STEPS + 1)[0]: told}
        assert not batch.fits(1)
        with pytest.raises(RequestError, match="batch: nobody can join"):
            batch.join(engine.prefill([[1]], 2)[1], 1)
        while not told.done:
            step(batch, seats)
        batch.leave(*batch.seats)
    for told, found in zip(one, other, strict=True):
        assert_close(torch.stack(found.logits), torch.stack(told.logits))


def test_sizes_are_few() -> None:
    assert [rows_for(n) for n in (1, 2, 3, 5, 8, 9, 16)] == [1, 2, 4, 8, 8, 16, 16]
    assert [rows_for(n) for n in (17, 24, 25, 64)] == [24, 24, 32, 64]


@few
def test_every_sequence_wants_its_token(model: nn.Module) -> None:
    engine = Engine(model)
    batch = Batch(engine)
    with pytest.raises(RequestError, match="tokens: 0 for a batch of 0"):
        batch.decode([])
    batch.join(engine.prefill([[1, 2]], 1)[1], 3)
    with pytest.raises(RequestError, match="tokens: 2 for a batch of 1"):
        batch.decode([1, 2])
