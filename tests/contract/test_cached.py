"""Law 2: cached equals uncached, whatever was left out and however the tokens arrive."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.cases import Case, plan_for, shared_out
from tests.contract.examples import Drawn, drawn, examples
from tests.contract.runs import (
    Batch,
    assert_close,
    cached,
    greedy_generate,
    greedy_uncached,
    make_batch,
    static_cache,
    uncached,
)
from tests.families import WINDOW, Sample
from torch import nn

import skimp
from skimp.models.anatomy import Anatomy

# Longer than the sliding window, and one row whose prompt is a single token.
PADDED = make_batch([WINDOW + 5, 8, 4], seed=1)
SINGLE = make_batch([WINDOW + 3], seed=2)


def check(model: nn.Module, static: bool) -> None:
    """Hold cached logits and tokens against uncached ones, on the model as it stands."""
    wanted, alone = uncached(model, PADDED), uncached(model, SINGLE)
    assert_close(cached(model, PADDED, [7]), wanted)  # prefill, then decode
    assert_close(cached(model, PADDED, [3, 4, 2]), wanted)  # chunked prefill
    assert_close(cached(model, SINGLE, [1]), alone)  # one-token prompt
    if static:
        assert_close(cached(model, PADDED, [7], static_cache(model, PADDED)), wanted)
        assert_close(cached(model, SINGLE, [1, 3], static_cache(model, SINGLE)), alone)


def check_generate(model: nn.Module, batch: Batch, new: int = 4) -> None:
    assert torch.equal(greedy_generate(model, batch, new), greedy_uncached(model, batch, new))


def test_dense_model_keeps_the_law(model: nn.Module, sample: Sample) -> None:
    """The ground the others stand on: transformers itself must agree with itself."""
    check(model, sample.static_cache)
    check_generate(model, PADDED)


def test_hard_plans(model: nn.Module, anatomy: Anatomy, sample: Sample, case: Case) -> None:
    for section in shared_out(case, anatomy.dense_layers).values():
        with skimp.apply(model, plan_for(case, section, anatomy)):
            check(model, sample.static_cache)


def test_generate(model: nn.Module, anatomy: Anatomy, case: Case) -> None:
    section = case.one(anatomy.dense_layers, "only the last attention kept")
    plan = plan_for(case, section, anatomy)
    with skimp.apply(model, plan):
        check_generate(model, PADDED)
        check_generate(model, make_batch([1], seed=3), WINDOW + 2)


@examples(40)
@given(example=drawn(), data=st.data())
def test_generated_plans(example: Drawn, data: st.DataObject) -> None:
    model = example.model
    lengths = data.draw(st.lists(st.integers(1, WINDOW + 4), min_size=1, max_size=3))
    batch = make_batch(lengths, seed=data.draw(st.integers(0, 9)))
    chunks: list[int] = []
    while (left := batch.length - sum(chunks)) and data.draw(st.booleans()):
        chunks.append(data.draw(st.integers(1, left)))
    with skimp.apply(model, example.plan):
        wanted = uncached(model, batch)
        assert_close(cached(model, batch, chunks), wanted)
        if example.sample.static_cache:
            assert_close(cached(model, batch, chunks, static_cache(model, batch)), wanted)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_attention_implementation(sample: Sample, implementation: str) -> None:
    try:
        model = sample.build(attention=implementation)
    except ValueError:
        pytest.skip(f"transformers has no {implementation} attention for {sample.name}")
    anatomy = Anatomy.of(model)
    plan = skimp.Plan.empty(anatomy).with_section("drop", {"attention": [0], "layers": [1]})
    with skimp.apply(model, plan):
        check(model, sample.static_cache)
