"""The laws on the engine: its own cache and its native decode step, for every family and case."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.cases import ROUTED, Case, plan_for, shared_out
from tests.contract.examples import Drawn, drawn, examples
from tests.contract.runs import Batch, assert_close, greedy_uncached, make_batch, uncached
from tests.families import WINDOW, Sample
from torch import Tensor, nn

import skimp
from skimp.engine import Engine, State
from skimp.engine.compiled import CompiledRunner
from skimp.engine.native import NativeRunner
from skimp.engine.program.capture import Shape
from skimp.engine.runners import cache_tensors
from skimp.measure.cost import kv_bytes
from skimp.models.anatomy import Anatomy

# Longer than the sliding window; after CUT columns one row's prompt is a single token.
PADDED = make_batch([WINDOW + 6, 9, 5], seed=1)
SINGLE = make_batch([WINDOW + 4], seed=2)
CUT = 7

# What the engine's slots do not serve, because the family's own code computes on cached keys.
PLAIN = {"falcon-7b", "falcon-40b", "falcon-11b", "falcon-alibi", "gptj", "deepseek_v3"}
# What decodes on the slots, but by torch: routed experts, and code that asks for values.
BY_TORCH = ROUTED - PLAIN


def prompts(batch: Batch, columns: int) -> list[list[int]]:
    rows = zip(batch.ids[:, :columns], batch.mask[:, :columns].bool(), strict=True)
    return [row[real].tolist() for row, real in rows]


def served(engine: Engine, batch: Batch, columns: int, chunk: int | None = None) -> Tensor:
    """Logits [tokens, V] after the first `columns` and after each further token."""
    logits, state = engine.prefill(prompts(batch, columns), batch.length - columns + 1, chunk=chunk)
    found = [logits]
    for column in range(columns, batch.length):
        found.append(engine.decode(state, batch.ids[:, column]))
    return torch.stack(found, 1).flatten(0, 1)


def expected(model: nn.Module, batch: Batch, columns: int) -> Tensor:
    """What the planned model says there without a cache."""
    with torch.no_grad():
        logits = model(**batch.part(0, batch.length), use_cache=False).logits
    return logits[:, columns - 1 :].flatten(0, 1)


def decoders(engine: Engine, batch: int, sample: Sample) -> list[str]:
    """The ways of decoding that this engine has, each to be tried; none falls back in silence."""
    reason = engine.warm_up(batch)
    if sample.name not in BY_TORCH:  # a plan may leave no routed experts, and then it is native too
        assert (reason is not None) == (sample.name in PLAIN), reason
    return ["torch"] if reason is not None else ["torch", "native"]


def decode_by(engine: Engine, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "torch" and isinstance(engine.runner, NativeRunner):
        monkeypatch.setattr(engine.runner, "program", lambda *args, **options: None)


def check(model: nn.Module, engine: Engine, sample: Sample) -> None:
    """Hold every way of decoding against the planned `model`."""
    found = [decoders(engine, batch, sample) for batch in (3, 1)]
    wanted = [expected(model, PADDED, CUT), expected(model, SINGLE, 1)]
    hold(engine, PADDED, found[0], wanted[0], SINGLE, found[1], wanted[1])


def hold(
    engine: Engine,
    padded: Batch,
    ways: list[str],
    wanted: Tensor,
    single: Batch,
    ways_alone: list[str],
    alone: Tensor,
) -> None:
    """Hold ways of decoding against logits: `wanted` from CUT on, `alone` from a prompt of one."""
    for way in ways:
        with pytest.MonkeyPatch.context() as patch:
            decode_by(engine, way, patch)
            assert_close(served(engine, padded, CUT), wanted, name=f"{way}, padded")
            assert_close(served(engine, padded, CUT, chunk=3), wanted, name=f"{way}, chunks")
    for way in ways_alone:
        with pytest.MonkeyPatch.context() as patch:
            decode_by(engine, way, patch)
            assert_close(served(engine, single, 1), alone, name=f"{way}, one-token prompt")


def test_every_family_decodes_as_it_should(model: nn.Module, sample: Sample) -> None:
    """Which engine a family gets is part of the contract: none falls back in silence."""
    engine = Engine(model)
    reason = engine.warm_up(1)
    assert (engine.plain is not None) == (sample.name in PLAIN)
    assert (reason is not None) == (sample.name in PLAIN | BY_TORCH), reason


def test_cached_equals_uncached(
    model: nn.Module, anatomy: Anatomy, sample: Sample, case: Case
) -> None:
    for section in shared_out(case, anatomy.dense_layers).values():
        plan = plan_for(case, section, anatomy)
        engine = Engine(model, plan)
        with skimp.apply(model, plan):
            check(model, engine, sample)


@examples(30)
@given(example=drawn(), data=st.data())
def test_generated_plans(example: Drawn, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(2, WINDOW + 4), min_size=1, max_size=3))
    batch = make_batch(lengths, seed=data.draw(st.integers(0, 9)))
    columns = data.draw(st.integers(batch.length - min(lengths) + 1, batch.length))
    chunk = data.draw(st.none() | st.integers(1, columns))
    engine = Engine(example.model, example.plan)
    with skimp.apply(example.model, example.plan):
        wanted = expected(example.model, batch, columns)
    for way in decoders(engine, len(lengths), example.sample):
        with pytest.MonkeyPatch.context() as patch:
            decode_by(engine, way, patch)
            assert_close(served(engine, batch, columns, chunk), wanted, name=way)


def test_nothing_asked_nothing_changed(model: nn.Module) -> None:
    """Law 1: the dense model's greedy tokens, and its own logits after the prompt."""
    engine = Engine(model)
    engine.warm_up(3)
    batch = make_batch([7, 4, 1], seed=4)
    answers = engine.generate(prompts(batch, batch.length), WINDOW + 3)
    assert [a.tokens for a in answers] == greedy_uncached(model, batch, WINDOW + 3).tolist()


def test_the_callers_model_stays_as_it_is(model: nn.Module, anatomy: Anatomy, case: Case) -> None:
    """Law 6: it is not changed, and what is kept of it is shared, not copied."""
    before = {name: (weight, weight.clone()) for name, weight in model.named_parameters()}
    wanted = uncached(model, PADDED)
    section = case.one(anatomy.dense_layers, "middle")
    plan = plan_for(case, section, anatomy)
    engine = Engine(model, plan)
    engine.generate([[1, 2, 3]], 3)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[n] is w and torch.equal(w, copy) for n, (w, copy) in before.items())
    assert torch.equal(uncached(model, PADDED), wanted)
    own = {weight.data_ptr() for weight, _ in before.values()}

    def new(of: nn.Module) -> set[str]:
        return {name for name, weight in of.named_parameters() if weight.data_ptr() not in own}

    with skimp.apply(model, plan):
        assert new(engine.model) == new(model)  # what the plan itself brings, and no copy


def test_interleaved_requests_are_as_if_alone(
    model: nn.Module, anatomy: Anatomy, case: Case
) -> None:
    """Law 4, between two ways of decoding and among requests of other lengths."""
    section = case.one(anatomy.dense_layers, "only the last attention kept")
    engine = Engine(model, plan_for(case, section, anatomy))
    engine.warm_up(2)
    batches = make_batch([7, 3], seed=5), make_batch([1], seed=6), make_batch([9, 9], seed=7)

    def begin(batch: Batch) -> tuple[list[Tensor], State]:
        logits, state = engine.prefill(prompts(batch, batch.length), 6)
        return [logits], state

    def go_on(seen: list[Tensor], state: State) -> None:
        seen.append(engine.decode(state, seen[-1].argmax(-1)))

    alone = []
    for batch in batches:
        request = begin(batch)
        for _ in range(5):
            go_on(*request)
        alone.append(request)
    together = [begin(batch) for batch in batches]
    for _ in range(5):
        for request in together:
            go_on(*request)
    for one, other in zip(alone, together, strict=True):
        assert all(map(torch.equal, one[0], other[0]))


def test_the_cache_is_what_was_predicted(
    model: nn.Module, anatomy: Anatomy, sample: Sample
) -> None:
    """Law 3: no entry for what is left out, windows no longer than they are, every byte known."""
    plan = skimp.Plan.empty(anatomy).with_section("drop", {"attention": [0], "layers": [2]})
    engine = Engine(model, plan)
    _, state = engine.prefill([[1] * 9, [2] * 4], 3)
    engine.decode(state, torch.tensor([3, 4]))
    held = sum(tensor.nbytes for tensor in cache_tensors(state.cache))
    if engine.plain is None:
        assert held == engine.runner.cache_bytes(2, 12) == kv_bytes(engine.anatomy, 12, 2)
    else:
        assert held <= engine.runner.cache_bytes(2, 12)


def test_compiled_step(model: nn.Module, anatomy: Anatomy, sample: Sample) -> None:
    """The step is one graph for torch.compile, and requests of other lengths are that graph too."""
    if sample.name in PLAIN:
        pytest.skip(f"{sample.name} runs on transformers' own cache")
    if sample.name in BY_TORCH:
        pytest.skip(f"{sample.name} routes by what it computes: no single graph")
    plan = skimp.Plan.empty(anatomy).with_section("drop", {"attention": [0], "layers": [2]})
    shapes = Engine(model, plan).runner.shapes
    engine = Engine(model, plan)
    engine.runner = CompiledRunner(engine.model, shapes, backend="eager")
    with skimp.apply(model, plan):
        wanted = expected(model, PADDED, CUT)
        assert_close(served(engine, PADDED, CUT), wanted)
        with torch._dynamo.config.patch(error_on_recompile=True):
            longer = make_batch([WINDOW + 19, 20, 16], seed=3)
            assert_close(served(engine, longer, 17), expected(model, longer, 17))
    torch._dynamo.reset()


def test_long_answers_come_to_the_program(
    model: nn.Module, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made once plain decoding has cost as much, in the middle of a request."""
    if sample.name in PLAIN | BY_TORCH:
        pytest.skip(f"{sample.name} decodes by torch")
    engine = Engine(model)
    assert isinstance(engine.runner, NativeRunner)
    wanted = engine.generate([[5, 6, 7]], 8)
    monkeypatch.setattr("skimp.engine.native._PATIENCE", 1e-9)
    assert engine.generate([[5, 6, 7]], 8) == wanted
    assert engine.runner.program(Shape(1)) is not None


def test_fifty_prompts_one_program(model: nn.Module, sample: Sample) -> None:
    """Neither a prompt's length nor a request's room makes a new decode step."""
    if sample.name in PLAIN | BY_TORCH:
        pytest.skip(f"{sample.name} decodes by torch")
    engine = Engine(model)
    engine.warm_up(1)
    assert isinstance(engine.runner, NativeRunner)
    program = engine.runner.program(Shape(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skimp.engine.native.capture", None)  # would raise if it were called
        for length in range(1, 51):
            engine.generate([[1 + length % 5] * length], 1 + length % 4 * 9)
    assert engine.runner.program(Shape(1)) is program
