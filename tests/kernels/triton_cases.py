"""What Triton's kernels must give. Run by test_triton_rows.py, in a process of its own, since
Triton decides when it is imported whether it interprets kernels: here, or for a GPU."""

import pytest
import torch
from tests.kernels.exact import DTYPES, assert_close, draw
from torch import Tensor

from skimp.kernels import ops, reference, triton_rows

OPS = torch.ops.skimp
DEVICE = "cpu" if triton_rows.INTERPRETED else "cuda"
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
HEIGHT = 150


def some(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return draw(*shape, dtype=dtype, seed=seed).to(DEVICE)


def pick(count: int, height: int = HEIGHT) -> Tensor:
    """So many rows, in no order, none twice."""
    order = torch.randperm(height, generator=torch.Generator().manual_seed(count))
    return order[:count].to(torch.int32).to(DEVICE)


def wide(rows: Tensor, *parts: Tensor | None) -> tuple[Tensor | None, ...]:
    return *(None if part is None else part.double() for part in parts), rows


def assert_linear(
    got: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor
) -> None:
    """The reference's result, but for float32 sums and one rounding."""
    assert got is not None and got.dtype is x.dtype and got.is_contiguous()
    exact = reference.linear(*wide(rows, x, weight, bias))
    sizes = (part if part is None else part.abs() for part in (x, weight, bias))
    assert_close(got, exact, reference.linear(*wide(rows, *sizes)))


def assert_neurons(got: Tensor | None, h: Tensor, weight: Tensor, rows: Tensor) -> None:
    assert got is not None and got.dtype is h.dtype and got.is_contiguous()
    exact = reference.neurons(*wide(rows, h, weight))
    assert_close(got, exact, reference.neurons(*wide(rows, h.abs(), weight.abs())))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inputs", (1, 3, 16))
@pytest.mark.parametrize("width", (1, 130, 515))
def test_any_shape(inputs: int, width: int, dtype: torch.dtype) -> None:
    """Widths below and above a block of columns; one row; fewer and more rows than one part."""
    weight, bias = some(HEIGHT, width, dtype=dtype), some(HEIGHT, dtype=dtype)
    x = some(inputs, width, dtype=dtype, seed=3)
    for count in (1, 9, 131):
        rows, h = pick(count), some(inputs, count, dtype=dtype, seed=4)
        assert_linear(triton_rows.linear(x, weight, bias, rows), x, weight, bias, rows)
        assert_neurons(triton_rows.neurons(h, weight, rows), h, weight, rows)


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float16), ids=str)
@pytest.mark.parametrize("inputs", (1, 4))
def test_rows_that_lie_apart_and_inputs_in_any_layout(inputs: int, dtype: torch.dtype) -> None:
    weight = some(HEIGHT, 77, dtype=dtype)[:, 5:70]
    rows = torch.stack([pick(100), pick(100)], 1)[:, 0]
    for x in (some(inputs, 130, dtype=dtype)[:, ::2], some(65, inputs, dtype=dtype).T):
        assert_linear(triton_rows.linear(x, weight, None, rows), x, weight, None, rows)
    deep = some(inputs, 1, 100, dtype=dtype)
    assert_neurons(triton_rows.neurons(deep, weight, rows), deep, weight, rows)
    assert_neurons(triton_rows.neurons(deep, weight, rows.long()), deep, weight, rows)


@pytest.mark.parametrize("inputs", (1, 5))
@pytest.mark.parametrize("count", (1, 2, 3))
def test_several_weights_in_one_launch(count: int, inputs: int) -> None:
    x, rows = some(inputs, 90, dtype=torch.bfloat16), pick(41)
    weights = [some(HEIGHT, 90, dtype=torch.bfloat16, seed=s) for s in range(count)]
    biases = [None, some(HEIGHT, dtype=torch.bfloat16), None][:count]
    outs = triton_rows.linear_many(x, weights, biases, rows)
    assert outs is not None and len(outs) == count
    for out, weight, bias in zip(outs, weights, biases, strict=True):
        assert_linear(out, x, weight, bias, rows)


@pytest.mark.parametrize("inputs", (1, 2))
def test_no_row_but_the_listed_ones_is_read(inputs: int) -> None:
    weight, rows = some(HEIGHT, 70, dtype=torch.float32), pick(80)
    weight[torch.tensor(sorted({*range(HEIGHT)} - {*rows.tolist()}))] = float("nan")
    x, h = (some(inputs, width, dtype=torch.float32) for width in (70, 80))
    assert_linear(triton_rows.linear(x, weight, None, rows), x, weight, None, rows)
    assert_neurons(triton_rows.neurons(h, weight, rows), h, weight, rows)


@pytest.mark.parametrize("inputs", (1, 2))
@pytest.mark.parametrize("bad", (-1, HEIGHT, 2**31 - 1))
def test_a_row_that_is_not_there_gives_nan_and_nothing_is_read(inputs: int, bad: int) -> None:
    weight, bias = (some(*shape, dtype=torch.float32) for shape in ((HEIGHT, 20), (HEIGHT,)))
    rows = pick(12)
    rows[5] = bad
    x, h = (some(inputs, width, dtype=torch.float32) for width in (20, 12))
    got = triton_rows.linear(x, weight, bias, rows)
    assert got is not None
    fine = [i for i in range(12) if i != 5]
    assert got[:, 5].isnan().all()
    assert_linear(got[:, fine].contiguous(), x, weight, bias, rows[fine])
    out = triton_rows.neurons(h, weight, rows)
    assert out is not None and out.isnan().all()


def test_the_same_bits_every_time() -> None:
    weight, rows = some(HEIGHT, 70, dtype=torch.float32), pick(140)
    h = some(2, 140, dtype=torch.float32)
    once, again = (triton_rows.neurons(h, weight, rows) for _ in range(2))
    assert once is not None and again is not None and torch.equal(once, again)


def refuse(*_: object) -> Tensor:
    raise AssertionError("the reference was asked")


def test_the_operators_of_gpus_come_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "linear", refuse)
    monkeypatch.setattr(reference, "neurons", refuse)
    w1, w2, w3 = (some(HEIGHT, 33, dtype=torch.bfloat16, seed=s) for s in (1, 2, 3))
    bias, rows = some(HEIGHT, dtype=torch.bfloat16), pick(20)
    x, h = some(2, 1, 33, dtype=torch.bfloat16), some(2, 1, 20, dtype=torch.bfloat16)
    one = OPS.linear.default.redispatch(CUDA, x, w1, bias, rows)
    two = OPS.linear2.default.redispatch(CUDA, x, w1, w2, bias, None, rows)
    three = OPS.linear3.default.redispatch(CUDA, x, w1, w2, w3, bias, None, bias, rows)
    out = OPS.neurons.default.redispatch(CUDA, h, w1, rows)
    monkeypatch.undo()
    for got in (one, two[0], three[0]):
        assert_linear(got, x, w1, bias, rows)
    assert_linear(two[1], x, w2, None, rows)
    assert_linear(three[2], x, w3, bias, rows)
    assert_neurons(out, h, w1, rows)


def test_what_is_not_for_these_kernels_goes_to_the_reference() -> None:
    weight, rows = some(HEIGHT, 24, dtype=torch.float32), pick(20)
    many, few = some(17, 24, dtype=torch.float32), some(2, 24, dtype=torch.float32)
    backwards = some(24, HEIGHT, dtype=torch.float32).T
    one, other = some(9, 24, dtype=torch.float32), some(8, 24, dtype=torch.float32)
    for x, w, r in (
        (many, weight, rows),
        (few.double(), weight.double(), rows),
        (few, backwards, rows),
        (few, weight, rows[:0]),
        (few[:0], weight, rows),
    ):
        assert triton_rows.linear(x, w, None, r) is None
        got = OPS.linear.default.redispatch(CUDA, x, w, None, r)
        assert torch.equal(got, reference.linear(x, w, None, r))
    assert triton_rows.linear_many(few, (one, other), (None, None), pick(5, 8)) is None
    assert triton_rows.neurons(some(17, 20, dtype=torch.float32), weight, rows) is None
    with pytest.raises(RuntimeError):
        OPS.linear.default.redispatch(CUDA, few, weight.bfloat16(), None, rows)
    with pytest.raises(RuntimeError):
        OPS.neurons.default.redispatch(CUDA, few, weight, rows)
    # All rows in order are torch's.
    got = OPS.linear.default.redispatch(CUDA, few, weight, None, None)
    assert torch.equal(got, few @ weight.T)


def test_a_triton_that_cannot_launch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        calls = 0

        def __getitem__(self, grid: object) -> "Broken":
            return self

        def __call__(self, *_: object, **__: object) -> None:
            self.calls += 1
            raise RuntimeError("no C compiler\nand much more")

    broken = Broken()
    monkeypatch.setattr(triton_rows, "_linear_kernel", broken)
    monkeypatch.setattr(triton_rows, "_broken", set())
    x, weight, rows = some(1, 8, dtype=torch.float32), some(9, 8, dtype=torch.float32), pick(3, 9)
    with pytest.warns(RuntimeWarning, match=r"\(no C compiler\), so chosen rows are copied"):
        got = ops._linear_gpu(x, weight, None, rows)
    assert torch.equal(got, reference.linear(x, weight, None, rows))
    assert torch.equal(ops._linear_gpu(x, weight, None, rows), got)
    assert broken.calls == 1
