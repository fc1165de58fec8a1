"""Products with weights whose neurons lie in rows."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.exact import DTYPES, assert_close, draw, product

from skimp import kernels
from skimp.kernels import reference
from skimp.kernels.native import ISAS, MOST_ROWS, Native


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 16 rows must not fall back in silence."""

    def refuse(h: torch.Tensor, *rest: object) -> torch.Tensor:
        assert h.numel() // h.shape[-1] > MOST_ROWS, "the native library did not take the call"
        return original(h, *rest)  # pyright: ignore[reportArgumentType]

    original = reference.neurons
    monkeypatch.setattr(reference, "neurons", refuse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", (1, 2, 3, 8, 16, 17))
def test_odd_shapes(isa: str, dtype: torch.dtype, m: int) -> None:
    for r, n in itertools.product((1, 7, 33), (1, 5, 32, 100, 4200)):
        h, weight_t = draw(m, r, dtype=dtype), draw(r, n, dtype=dtype)
        assert_close(kernels.neurons(h, weight_t), *product(h, weight_t.T))


@settings(max_examples=60)
@given(
    m=st.integers(1, MOST_ROWS),
    n=st.integers(0, 150),
    height=st.integers(1, 30),
    more=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(ISAS),
    picks=st.lists(st.integers(0, 10_000), min_size=1, max_size=40),
)
def test_any_shape_and_any_rows(native: Native, m, n, height, more, dtype, isa, picks) -> None:
    native.choose(isa)
    try:
        weight_t = draw(height, n + more, dtype=dtype)[:, :n]
        rows = [pick % height for pick in picks]
        h = draw(m, len(rows), dtype=dtype)
        got = kernels.neurons(h, weight_t, torch.tensor(rows, dtype=torch.int32))
        assert_close(got, *product(h, weight_t[rows].T))
    finally:
        native.choose(None)


def test_all_rows_are_the_list_of_all(isa: str) -> None:
    for dtype, m in itertools.product(DTYPES, (1, 6)):
        h, weight_t = draw(m, 21, dtype=dtype), draw(21, 75, dtype=dtype)
        rows = torch.arange(21, dtype=torch.int32)
        assert torch.equal(kernels.neurons(h, weight_t), kernels.neurons(h, weight_t, rows))


def test_no_rows_at_all_give_zeros(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # an empty sum is the reference's
    none = torch.zeros(0, dtype=torch.int32)
    got = kernels.neurons(torch.zeros(2, 0), torch.ones(5, 7), none)
    assert torch.equal(got, torch.zeros(2, 7))


@pytest.mark.parametrize("bad", (-1, 4))
def test_a_row_that_is_not_there_is_refused(isa: str, bad: int) -> None:
    with pytest.raises(IndexError, match=r"0 \.\. 3"):
        rows = torch.tensor([0, bad], dtype=torch.int32)
        kernels.neurons(torch.ones(1, 2), torch.ones(4, 3), rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("odd", (float("nan"), float("inf"), -float("inf")))
def test_what_is_no_number_stays_so(isa: str, dtype: torch.dtype, odd: float) -> None:
    for m, r, n in ((1, 9, 70), (5, 6, 33)):
        h, weight_t = draw(m, r, dtype=dtype), draw(r, n, dtype=dtype)
        weight_t[2, n - 1], h[0, 1], weight_t[1, 0] = odd, odd, 0.0
        exact, _ = product(h, weight_t.T)
        got = kernels.neurons(h, weight_t)
        assert torch.equal(got.isnan(), exact.isnan())
        assert torch.equal(got[got.isinf()].double(), exact[exact.isinf()])
