"""Writing into a cache, and the norm."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.exact import DTYPES, assert_close, draw

from skimp import kernels
from skimp.kernels import reference
from skimp.kernels.native import Native


def refuse(*_: object) -> None:
    raise AssertionError("the native library did not take the call")


@given(
    entries=st.integers(1, 20),
    d=st.integers(1, 40),
    picks=st.lists(st.integers(0, 1000), max_size=5),
    dtype=st.sampled_from((*DTYPES, torch.float16, torch.float64, torch.int8)),
)
def test_new_entries_are_where_the_index_says(native: Native, entries, d, picks, dtype) -> None:
    index = torch.tensor([pick % entries for pick in picks], dtype=torch.int64)
    new = draw(2, 3, len(picks), d, dtype=torch.float32).mul(9).to(dtype)
    cache = torch.zeros(2, 5, entries + 2, d + 3, dtype=dtype)
    before, view = cache.clone(), cache[:, 1:4, 1:-1, :d]
    kernels.store(view, new, index)
    for at, pick in enumerate(index.tolist()):
        before[:, 1:4, 1 + pick, :d] = new[:, :, at]
    assert torch.equal(cache, before)


def test_store_takes_a_transposed_projection(
    native: Native, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "store", refuse)
    new = draw(2, 4, 3 * 8, dtype=torch.bfloat16).view(2, 4, 3, 8).transpose(1, 2)
    cache = torch.zeros(2, 3, 9, 8, dtype=torch.bfloat16)
    kernels.store(cache, new, torch.tensor([8, 0, 1, 5]))
    assert torch.equal(cache[:, :, [8, 0, 1, 5]], new)


def test_an_index_with_gaps_in_memory(native: Native) -> None:
    cache = torch.zeros(1, 1, 9, 4)
    kernels.store(cache, torch.ones(1, 1, 2, 4), torch.tensor([3, 0, 5, 0])[::2])
    assert cache[0, 0, :, 0].nonzero().flatten().tolist() == [3, 5]


@pytest.mark.parametrize("bad", (-1, 9))
def test_an_entry_that_is_not_there_is_refused_before_anything_is_written(
    native: Native, bad: int
) -> None:
    cache = torch.zeros(1, 1, 9, 4)
    with pytest.raises(IndexError, match=r"0 \.\. 8"):
        kernels.store(cache, torch.ones(1, 1, 2, 4), torch.tensor([0, bad]))
    assert not cache.any()


def test_shapes_that_do_not_fit_are_refused(native: Native) -> None:
    cache = torch.zeros(1, 2, 9, 4)
    for new, index in (((1, 2, 2, 5), [0, 1]), ((1, 3, 2, 4), [0, 1]), ((1, 2, 2, 4), [0])):
        with pytest.raises((RuntimeError, IndexError)):
            kernels.store(cache, torch.ones(new), torch.tensor(index))
    assert not cache.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", (0.0, 1.0))
def test_norm(isa: str, dtype: torch.dtype, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "rms_norm", refuse)
    for k, lead in itertools.product((1, 7, 64, 100, 577), ((3,), (2, 1), ())):
        x, weight = draw(*lead, k, dtype=dtype) * 3, draw(k, dtype=dtype)
        wide = x.double()
        normal = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        exact = normal * (weight.double() + offset)
        assert_close(kernels.rms_norm(x, weight, 1e-5, offset, False), exact, exact.abs())


@pytest.mark.parametrize("offset", (0.0, 1.0))
@pytest.mark.parametrize("round_first", (False, True))
def test_norm_rounds_where_the_reference_does(isa: str, offset: float, round_first: bool) -> None:
    """The same bfloat16 results, but for sums in another order on the edge of rounding."""
    x, weight = draw(40, 200, dtype=torch.bfloat16), draw(200, dtype=torch.bfloat16)
    got = kernels.rms_norm(x, weight, 1e-6, offset, round_first)
    wanted = reference.rms_norm(x, weight, 1e-6, offset, round_first)
    other = reference.rms_norm(x, weight, 1e-6, offset, not round_first)
    same = (got == wanted).float().mean()
    assert same > 0.999 and same > (got == other).float().mean() + 0.05


def test_norm_of_no_number(isa: str) -> None:
    for odd in (float("nan"), float("inf")):
        x = torch.ones(2, 33)
        x[0, 32] = odd
        got = kernels.rms_norm(x, torch.ones(33), 1e-6)
        wanted = reference.rms_norm(x, torch.ones(33), 1e-6)
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got[1], wanted[1])
