"""Attention over a cache against float64, and what hidden entries must not do."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.exact import DTYPES, assert_close, draw
from torch import Tensor

from skimp import kernels
from skimp.kernels import reference
from skimp.kernels.native import ISAS, Native


@pytest.fixture(autouse=True)
def taken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may fall back in silence."""
    if "reference" in request.node.name:
        return

    def refuse(*_: object) -> Tensor:
        raise AssertionError("the native library did not take the call")

    monkeypatch.setattr(reference, "attend", refuse)


def exact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One query after the other in float64; and the result for absolute values, its size."""
    batch, heads, queries, _ = q.shape
    group = heads // k.shape[1]
    out = torch.zeros(batch, queries, heads, v.shape[3], dtype=torch.float64)
    size = out.clone()
    for b, h, i in itertools.product(range(batch), range(heads), range(queries)):
        seen = valid[b, i].nonzero().flatten()
        if not len(seen):
            continue
        keys, values = (part[b, h // group, seen].double() for part in (k, v))
        scores = keys @ q[b, h, i].double() * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        least = [] if sinks is None else [sinks[h].double().item()]
        top = max([scores.max().item(), *least])
        shares = (scores - top).exp()
        total = shares.sum() + sum(math.exp(sink - top) for sink in least)
        out[b, i, h] = shares @ values / total
        # An error of a score is one of the logarithm of its share.
        reach = (keys.abs() @ q[b, h, i].double().abs()).max() * abs(scale)
        size[b, i, h] = shares @ values.abs() / total * (1 + reach + softcap)
    return out, size


def cache(
    batch: int, heads: int, entries: int, d: int, dv: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    k = draw(batch, heads, entries, d, dtype=dtype, seed=1)
    return k, draw(batch, heads, entries, dv, dtype=dtype, seed=2)


def some(*shape: int, share: float = 0.6) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) < share


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", (1, 2, 3, 4, 5, 9))
def test_groups_of_queries_and_odd_shapes(isa: str, dtype: torch.dtype, group: int) -> None:
    for entries, (d, dv) in itertools.product((1, 9, 70), ((1, 7), (33, 64), (64, 33), (80, 128))):
        q = draw(2, 2 * group, 1, d, dtype=dtype)
        k, v = cache(2, 2, entries, d, dv, dtype)
        valid = some(2, 1, entries)
        got = kernels.attend(q, k, v, valid, d**-0.5)
        assert_close(got, *exact(q, k, v, valid, d**-0.5))


@settings(max_examples=50)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    group=st.integers(1, 6),
    queries=st.integers(1, 4),
    entries=st.integers(0, 150),
    d=st.integers(1, 70),
    dv=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(ISAS),
    softcap=st.sampled_from((0.0, 0.0, 5.0)),
    sinks=st.booleans(),
    share=st.sampled_from((0.0, 0.1, 0.7, 1.0)),
)
def test_any_shape(
    native: Native,
    batch,
    heads,
    group,
    queries,
    entries,
    d,
    dv,
    dtype,
    isa,
    softcap,
    sinks,
    share,
) -> None:
    native.choose(isa)
    try:
        q = draw(batch, heads * group, queries, d, dtype=dtype)
        k, v = cache(batch, heads, entries, d, dv, dtype)
        valid = some(batch, queries, entries, share=share)
        logits = draw(heads * group, dtype=torch.float32) if sinks else None
        got = kernels.attend(q, k, v, valid, 0.3, softcap, logits)
        assert_close(got, *exact(q, k, v, valid, 0.3, softcap, logits))
    finally:
        native.choose(None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", (0.0, -0.7, 30.0))
def test_scales_that_are_not_the_usual(isa: str, dtype: torch.dtype, scale: float) -> None:
    q, valid = draw(1, 4, 2, 32, dtype=dtype), some(1, 2, 40)
    k, v = cache(1, 2, 40, 32, 32, dtype)
    assert_close(kernels.attend(q, k, v, valid, scale), *exact(q, k, v, valid, scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_hidden_is_not_read(isa: str, dtype: torch.dtype) -> None:
    q, valid = draw(2, 6, 1, 40, dtype=dtype), some(2, 1, 100)
    k, v = cache(2, 2, 100, 40, 40, dtype)
    clean = kernels.attend(q, k, v, valid, 0.2)
    hidden = ~valid[:, 0, None, :, None]
    dirty = [part.masked_fill(hidden, float("nan")) for part in (k, v)]
    assert torch.equal(kernels.attend(q, *dirty, valid, 0.2), clean)


@pytest.mark.parametrize("softcap", (0.0, 4.0))
def test_queries_see_what_each_may(isa: str, softcap: float) -> None:
    """New queries over a cache see each its past: together they get what each gets alone."""
    q, valid = draw(1, 4, 3, 16, dtype=torch.float32), torch.ones(1, 3, 20, dtype=torch.bool)
    valid = valid.tril(17)
    k, v = cache(1, 2, 20, 16, 16, torch.float32)
    together = kernels.attend(q, k, v, valid, 0.25, softcap)
    for i in range(3):
        alone = kernels.attend(q[:, :, i : i + 1], k, v, valid[:, i : i + 1], 0.25, softcap)
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-6, atol=1e-6)


def test_a_query_that_sees_nothing_gets_zeros(isa: str) -> None:
    q, valid = draw(2, 2, 2, 16, dtype=torch.float32), torch.ones(2, 2, 20, dtype=torch.bool)
    valid[0, 1], valid[1] = False, False
    k, v = cache(2, 1, 20, 16, 16, torch.float32)
    for sinks in (None, torch.zeros(2)):
        got = kernels.attend(q, k, v, valid, 0.25, 0.0, sinks)
        assert got[0, 0].abs().min() > 0
        assert not got[0, 1].any() and not got[1].any()


def test_a_sink_takes_its_share(isa: str) -> None:
    q, valid = torch.zeros(1, 2, 1, 8), torch.ones(1, 1, 3, dtype=torch.bool)
    k, v = torch.zeros(1, 1, 3, 8), torch.ones(1, 1, 3, 8)
    sinks = torch.tensor([0.0, -float("inf")])
    got = kernels.attend(q, k, v, valid, 1.0, 0.0, sinks)
    wanted = torch.tensor([0.75, 1.0])[None, None, :, None].expand(1, 1, 2, 8)
    torch.testing.assert_close(got, wanted)
    assert torch.equal(kernels.attend(q, k, v, valid, 1.0, 0.0, sinks.bfloat16()), got)


def test_a_sink_far_above_the_scores_leaves_next_to_nothing(isa: str) -> None:
    q, valid = torch.zeros(1, 1, 1, 8), torch.ones(1, 1, 3, dtype=torch.bool)
    k, v = torch.zeros(1, 1, 3, 8), torch.ones(1, 1, 3, 8)
    for logit in (20.0, 500.0):
        sinks = torch.tensor([logit])
        got = kernels.attend(q, k, v, valid, 1.0, 0.0, sinks)
        assert_close(got, *exact(q, k, v, valid, 1.0, 0.0, sinks))


def test_shares_are_exact_however_small(isa: str) -> None:
    """Two entries with scores 0 and x give e^x / (1 + e^x), to a few units in the last place."""
    x = -80 * torch.rand(5000, generator=torch.Generator().manual_seed(0))
    k = torch.stack([torch.zeros_like(x), x], dim=1).view(1, -1, 2, 1)
    v = torch.tensor([0.0, 1.0]).repeat(5000).view(1, -1, 2, 1)
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    got = kernels.attend(torch.ones(1, 5000, 1, 1), k, v, valid, 1.0).flatten().double()
    wanted = x.double().exp() / (1 + x.double().exp())
    assert ((got - wanted) / wanted).abs().max() < 2.5 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_number_in_sight_gives_no_number(isa: str, dtype: torch.dtype) -> None:
    q, valid = draw(1, 2, 1, 16, dtype=dtype), torch.ones(1, 1, 30, dtype=torch.bool)
    k, v = cache(1, 2, 30, 16, 16, dtype)
    k[0, 0, 7, 3] = float("nan")
    v[0, 1, 9, 5] = float("nan")
    got = kernels.attend(q, k, v, valid, 0.25).isnan()
    assert got[0, 0, 0].all()
    assert got[0, 0, 1].nonzero().flatten().tolist() == [5]
    everything = kernels.attend(q, torch.full_like(k, float("nan")), v, valid, 0.25)
    assert everything.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_as_models_hand_them_over(isa: str, dtype: torch.dtype) -> None:
    q = draw(2, 1, 6 * 16, dtype=dtype).view(2, 1, 6, 16).transpose(1, 2)
    k, v = cache(2, 3, 64, 16, 16, dtype)
    k, v, valid = k[:, :2, 8:50], v[:, :2, 8:50], some(2, 1, 64)[:, :, 8:50]
    same = (part.contiguous() for part in (q, k, v, valid))
    assert torch.equal(kernels.attend(q, k, v, valid, 0.25), kernels.attend(*same, 0.25))
    wide = valid[:1].expand(2, 1, 42)
    assert_close(kernels.attend(q, k, v, wide, 0.25), *exact(q, k, v, wide, 0.25))


def test_a_long_cache(isa: str) -> None:
    q, valid = draw(1, 6, 1, 64, dtype=torch.bfloat16), some(1, 1, 5000, share=0.9)
    k, v = cache(1, 2, 5000, 64, 64, torch.bfloat16)
    assert_close(kernels.attend(q, k, v, valid, 0.125), *exact(q, k, v, valid, 0.125))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", (0.0, 5.0))
def test_the_reference_is_exact_too(dtype: torch.dtype, softcap: float) -> None:
    q, valid = draw(2, 6, 3, 32, dtype=dtype), some(2, 3, 60)
    valid[0, 1] = False
    k, v = cache(2, 2, 60, 32, 20, dtype)
    sinks = draw(6, dtype=torch.float32)
    k.masked_fill_(~valid.any(1)[:, None, :, None], float("nan"))
    got = reference.attend(q, k, v, valid, 0.3, softcap, sinks)
    assert_close(got, *exact(q, k, v, valid, 0.3, softcap, sinks))
