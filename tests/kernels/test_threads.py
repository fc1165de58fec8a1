"""Kernels in parts: by several threads, alone when those are busy, and by many callers at once."""

import threading
from collections.abc import Iterator

import pytest
import torch
from tests.kernels.exact import DTYPES, assert_close, draw, product

from skimp import kernels
from skimp.errors import SkimpError
from skimp.kernels.native import Native


@pytest.fixture(autouse=True)
def one_thread(native: Native) -> Iterator[None]:
    yield
    kernels.set_threads(1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", (1, 5, 16))
def test_rows_are_shared_and_nothing_changes(isa: str, dtype: torch.dtype, m: int) -> None:
    """Large enough to be cut; a job's boundary lies inside of a part."""
    x, weights = draw(m, 333, dtype=dtype), [draw(n, 333, dtype=dtype) for n in (800, 3, 501)]
    rows = torch.randint(0, 800, (900,), generator=torch.Generator().manual_seed(1))
    alone = (*kernels.linear_many(x, weights), kernels.linear(x, weights[0], None, rows))
    for count in (2, 3, 7):
        kernels.set_threads(count)
        got = (*kernels.linear_many(x, weights), kernels.linear(x, weights[0], None, rows))
        for one, other in zip(got, alone, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", (1, 5, 16))
def test_neurons_are_shared_and_summed_in_one_order(isa: str, dtype: torch.dtype, m: int) -> None:
    h, weight_t = draw(m, 803, dtype=dtype), draw(803, 333, dtype=dtype)
    exact = product(h, weight_t.T)
    for count in (1, 2, 3, 7):
        kernels.set_threads(count)
        got = kernels.neurons(h, weight_t)
        assert_close(got, *exact)
        for _ in range(5):
            assert torch.equal(kernels.neurons(h, weight_t), got)


def test_heads_are_shared_and_nothing_changes(isa: str) -> None:
    q = draw(3, 4, 2, 24, dtype=torch.bfloat16)
    k, v = (draw(3, 2, 2100, 24, dtype=torch.bfloat16, seed=s) for s in (1, 2))
    valid = torch.rand(3, 2, 2100, generator=torch.Generator().manual_seed(1)) < 0.5
    alone = kernels.attend(q, k, v, valid, 0.2)
    for count in (2, 5, 9):
        kernels.set_threads(count)
        assert torch.equal(kernels.attend(q, k, v, valid, 0.2), alone)


def test_callers_at_once_do_not_mix(native: Native) -> None:
    """One of them gets the helpers, the others do all parts themselves."""
    kernels.set_threads(3)
    weights = [draw(900, 400, dtype=torch.float32, seed=s) for s in range(4)]
    h, x = draw(2, 900, dtype=torch.float32), draw(2, 400, dtype=torch.float32)
    wanted = [(kernels.linear(x, weight), kernels.neurons(h, weight)) for weight in weights]
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(150):
            got = kernels.linear(x, weights[number]), kernels.neurons(h, weights[number])
            if not all(torch.equal(*pair) for pair in zip(got, wanted[number], strict=True)):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
        assert not caller.is_alive()
    assert wrong == []


def test_a_number_of_threads_below_one_is_refused() -> None:
    kernels.set_threads(2)
    with pytest.raises(SkimpError, match="not 0"):
        kernels.set_threads(0)
    assert kernels.threads() == 2
