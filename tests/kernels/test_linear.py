"""Products with weight rows: every dtype, instruction set and odd shape against float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.exact import DTYPES, assert_close, draw, product

from skimp import kernels
from skimp.kernels import reference
from skimp.kernels.native import ISAS, MOST_ROWS, Native

SIZES = (1, 7, 33, 64, 200)


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 16 rows must not fall back in silence."""

    def refuse(x: torch.Tensor, *rest: object) -> torch.Tensor:
        assert x.numel() // x.shape[-1] > MOST_ROWS, "the native library did not take the call"
        return original(x, *rest)  # pyright: ignore[reportArgumentType]

    original = reference.linear
    monkeypatch.setattr(reference, "linear", refuse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", range(1, MOST_ROWS + 2))
def test_every_number_of_inputs(isa: str, dtype: torch.dtype, m: int) -> None:
    for n, k in itertools.product((1, 5, 18), SIZES):
        x, weight, bias = (draw(*s, dtype=dtype) for s in ((m, k), (n, k), (n,)))
        assert_close(kernels.linear(x, weight, bias), *product(x, weight, bias))
        assert_close(kernels.linear(x, weight), *product(x, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", (1, 4, 8, 13, 16))
def test_inputs_too_wide_for_the_first_cache(isa: str, dtype: torch.dtype, m: int) -> None:
    x, weight = draw(m, 9001, dtype=dtype), draw(38, 9001, dtype=dtype)
    assert_close(kernels.linear(x, weight), *product(x, weight))


@settings(max_examples=60)
@given(
    m=st.integers(1, MOST_ROWS),
    n=st.integers(0, 70),
    k=st.integers(1, 140),
    more=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(ISAS),
    picks=st.lists(st.integers(0, 10_000), max_size=40),
)
def test_any_shape_and_any_rows(native: Native, m, n, k, more, dtype, isa, picks) -> None:
    native.choose(isa)
    try:
        x, bias = draw(m, k, dtype=dtype), draw(n, dtype=dtype)
        weight = draw(n, k + more, dtype=dtype)[:, :k]
        assert_close(kernels.linear(x, weight, bias), *product(x, weight, bias))
        rows = [pick % n for pick in picks if n]
        got = kernels.linear(x, weight, bias, torch.tensor(rows, dtype=torch.int32))
        assert_close(got, *product(x, weight[rows], bias[rows]))
    finally:
        native.choose(None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes_and_strides_of_the_input(isa: str, dtype: torch.dtype) -> None:
    weight = draw(9, 40, dtype=dtype)
    deep = draw(2, 3, 40, dtype=dtype)
    sliced, turned = draw(3, 80, dtype=dtype)[:, ::2], draw(40, 3, dtype=dtype).T
    for x in (deep, deep[:, -1], deep[:, 1:], sliced, turned, draw(40, dtype=dtype)):
        got = kernels.linear(x, weight)
        flat, size = product(x.reshape(-1, 40), weight)
        assert_close(got, flat.view(*x.shape[:-1], 9), size.view(*x.shape[:-1], 9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", (1, 2, 3, 4, 5))
def test_many_weights_give_what_each_gives(isa: str, dtype: torch.dtype, count: int) -> None:
    x = draw(2, 50, dtype=dtype)
    weights = [draw(n, 50, dtype=dtype, seed=n) for n in (64, 3, 17, 1, 30)[:count]]
    biases = [draw(len(weight), dtype=dtype) if i % 2 else None for i, weight in enumerate(weights)]
    for got, weight, bias in zip(
        kernels.linear_many(x, weights, biases), weights, biases, strict=True
    ):
        assert torch.equal(got, kernels.linear(x, weight, bias))
    for got, weight in zip(kernels.linear_many(x, weights), weights, strict=True):
        assert torch.equal(got, kernels.linear(x, weight))


def test_many_weights_share_a_list_of_rows(isa: str) -> None:
    x, rows = draw(1, 24, dtype=torch.bfloat16), torch.tensor([4, 0, 4], dtype=torch.int32)
    weights = [draw(6, 24, dtype=torch.bfloat16, seed=n) for n in (1, 2)]
    for got, weight in zip(kernels.linear_many(x, weights, rows=rows), weights, strict=True):
        assert torch.equal(got, kernels.linear(x, weight)[:, rows])


@pytest.mark.parametrize("rows", ([], [3], [5, 2, 2, 0], list(range(6)), [0] * 50))
def test_lists_of_rows_may_repeat_and_need_no_order(isa: str, rows: list[int]) -> None:
    for dtype, m in itertools.product(DTYPES, (1, 5, 11)):
        x, weight = draw(m, 48, dtype=dtype), draw(6, 48, dtype=dtype)
        got = kernels.linear(x, weight, None, torch.tensor(rows, dtype=torch.int32))
        assert torch.equal(got, kernels.linear(x, weight)[:, rows])
        assert torch.equal(got, kernels.linear(x, weight, None, torch.tensor(rows).long()))


@pytest.mark.parametrize("bad", (-1, 6, 2**31 - 1))
def test_a_row_that_is_not_there_is_refused(isa: str, bad: int) -> None:
    x, weight = draw(1, 8, dtype=torch.float32), draw(6, 8, dtype=torch.float32)
    with pytest.raises(IndexError, match=r"0 \.\. 5"):
        kernels.linear(x, weight, None, torch.tensor([0, bad], dtype=torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("odd", (float("nan"), float("inf"), -float("inf")))
def test_what_is_no_number_stays_so(isa: str, dtype: torch.dtype, odd: float) -> None:
    for m, k, at in ((1, 70, 3), (3, 70, 69), (6, 40, 0), (12, 33, 32)):
        x, weight = draw(m, k, dtype=dtype), draw(10, k, dtype=dtype)
        x[m - 1, at] = odd
        weight[4, at], weight[6, 0] = odd, 0.0
        exact, _ = product(x, weight)
        got = kernels.linear(x, weight)
        assert torch.equal(got.isnan(), exact.isnan())
        assert torch.equal(got.isinf(), exact.isinf())
        assert torch.equal(got[got.isinf()].double(), exact[exact.isinf()])
