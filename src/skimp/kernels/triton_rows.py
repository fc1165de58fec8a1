"""Products with chosen weight rows on GPUs, read where they lie: for prompt-adaptive experts.

This module imports Triton; import it late. Elsewhere than on a GPU its functions return None, but
under Triton's interpreter (`TRITON_INTERPRET=1`), which is how they are tested without one.

A row index outside of the weight cannot be complained about without waiting for the device at
every step. What is guaranteed instead: nothing outside of the weight is read, and every number
that would have come from there is NaN.

Sums are taken in float32, in an order that the shapes alone decide, and rounded once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_INPUTS = 16
"""Inputs of more rows are the reference's: it copies the weight rows once for all of them."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PROGRAMS = 512  # of the sums over rows: enough to keep the largest GPU busy
_LEAST_ROWS = 64  # a part of those sums is not worth a program of its own below this
_BLOCK = 1024


def _jit(**options: Any) -> Callable[[Callable[..., None]], Any]:
    """``triton.jit``, for a language that type checkers do not know."""
    return triton.jit(**options)


@_jit()
def _dots(
    x, weight, bias, rows, out, m, r, k, height, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr,
    BIASED: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """``out[m, i] = x[m] · weight[rows[i]] (+ bias[rows[i]])`` for ROWS of the list."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows + at, mask=at < r, other=0).to(tl.int64)
    known = (row >= 0) & (row < height)
    lines = weight + row[:, None] * stride
    columns, inputs = tl.arange(0, COLUMNS), tl.arange(0, INPUTS)
    if INPUTS == 1:
        products = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        products = tl.zeros((ROWS, INPUTS), tl.float32)
    for first in range(0, k, COLUMNS):
        column = first + columns
        inside = column < k
        w = tl.load(lines + column[None, :], mask=known[:, None] & inside[None, :], other=0.0)
        if INPUTS == 1:
            v = tl.load(x + column, mask=inside, other=0.0)
            products += w.to(tl.float32) * v.to(tl.float32)[None, :]
        else:
            here = x + inputs[None, :] * k + column[:, None]
            v = tl.load(here, mask=inside[:, None] & (inputs < m)[None, :], other=0.0)
            if WIDEN:
                w, v = w.to(tl.float32), v.to(tl.float32)
            products = tl.dot(w, v, products, input_precision="ieee")
    if INPUTS == 1:
        sums = tl.sum(products, 1)[:, None]
    else:
        sums = products
    if BIASED:
        sums += tl.load(bias + row, mask=known, other=0.0).to(tl.float32)[:, None]
    sums = tl.where(known[:, None], sums, float("nan"))
    there = out + inputs[None, :] * r + at[:, None]
    mask = (at < r)[:, None] & (inputs < m)[None, :]
    tl.store(there, sums.to(out.dtype.element_ty), mask=mask)


@_jit(do_not_specialize=["m", "r"])
def _linear_kernel(
    x, w1, w2, w3, b1, b2, b3, rows, o1, o2, o3, m, r, k, height, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr,
    B1: tl.constexpr, B2: tl.constexpr, B3: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Up to three weights of one shape and stride; the second axis of the grid says which."""
    # Branches rather than chosen pointers, so that the compiler knows how each one is aligned.
    if tl.program_id(1) == 0:
        _dots(x, w1, b1, rows, o1, m, r, k, height, stride, ROWS, COLUMNS, INPUTS, B1, WIDEN)
    elif tl.program_id(1) == 1:
        _dots(x, w2, b2, rows, o2, m, r, k, height, stride, ROWS, COLUMNS, INPUTS, B2, WIDEN)
    else:
        _dots(x, w3, b3, rows, o3, m, r, k, height, stride, ROWS, COLUMNS, INPUTS, B3, WIDEN)


@_jit(do_not_specialize=["m", "r", "each"])
def _neurons_kernel(
    h, weight, rows, sums, m, r, n, height, stride, each,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INPUTS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """``sums[part, m] = Σ h[m, i] weight[rows[i]]`` over the `each` neurons of a part."""
    part = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n
    lanes, inputs = tl.arange(0, ROWS), tl.arange(0, INPUTS)
    end = tl.minimum((part + 1) * each, r)
    astray = tl.zeros((ROWS,), tl.float32)
    if INPUTS == 1:
        products = tl.zeros((ROWS, COLUMNS), tl.float32)
    else:
        products = tl.zeros((INPUTS, COLUMNS), tl.float32)
    for first in range(part * each, end, ROWS):
        at = first + lanes
        listed = at < end
        row = tl.load(rows + at, mask=listed, other=0).to(tl.int64)
        known = (row >= 0) & (row < height)
        lines = weight + row[:, None] * stride + column[None, :]
        w = tl.load(lines, mask=(listed & known)[:, None] & inside[None, :], other=0.0)
        astray += tl.where(known, 0.0, float("nan"))
        if INPUTS == 1:
            v = tl.load(h + at, mask=listed, other=0.0)
            products += w.to(tl.float32) * v.to(tl.float32)[:, None]
        else:
            here = h + inputs[:, None] * r + at[None, :]
            v = tl.load(here, mask=(inputs < m)[:, None] & listed[None, :], other=0.0)
            if WIDEN:
                w, v = w.to(tl.float32), v.to(tl.float32)
            products = tl.dot(v, w, products, input_precision="ieee")
    if INPUTS == 1:
        total = tl.sum(products, 0)[None, :]
    else:
        total = products
    total += tl.sum(astray, 0)
    there = sums + (part * m + inputs[:, None]) * n + column[None, :]
    mask = (inputs < m)[:, None] & inside[None, :]
    tl.store(there, total.to(sums.dtype.element_ty), mask=mask)


@_jit(do_not_specialize=["parts"])
def _add_parts(sums, out, parts, size, BLOCK: tl.constexpr):
    """``out = Σ sums[part]``, always in the same order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        total += tl.load(sums + part * size + at, mask=at < size, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < size)


INTERPRETED = not isinstance(_linear_kernel, triton.JITFunction)
"""Whether Triton runs kernels in Python, on the tensors of any device."""

OPTIONS = {"enable_fp_fusion": True}
"""A product and a sum in one rounding, which Triton warns about leaving to its default."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor | None:
    """:func:`skimp.kernels.linear` of listed rows; None: it is not for these kernels."""
    out = linear_many(x, (weight,), (bias,), rows)
    return None if out is None else out[0]


def linear_many(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: Tensor
) -> tuple[Tensor, ...] | None:
    """:func:`skimp.kernels.linear_many` of listed rows in one launch; None: not for these kernels.

    Args:
        x: [..., K], at most 16 in all.
        weights: one to three [height, K] of one shape and stride, each row contiguous.
        biases: one [height] or None a weight.
        rows: int32 or int64 [R].
    """
    first = weights[0]
    inputs, k = x.numel() // max(1, x.shape[-1]), x.shape[-1]
    if not _takes(x, rows, inputs, *weights, *(b for b in biases if b is not None)):
        return None
    height = first.shape[0]
    if any(w.shape != (height, k) or w.stride() != first.stride() for w in weights):
        return None
    if any(b is not None and (b.shape != (height,) or b.stride(0) != 1) for b in biases):
        return None
    if not _by_rows(first):
        return None
    count, r = len(weights), rows.shape[0]
    x, rows = x.contiguous(), rows.contiguous()
    outs = [x.new_empty((*x.shape[:-1], r)) for _ in weights]
    sizes = tile(inputs, x.dtype)
    spare = 3 - count
    arguments = (
        *(x, *weights, *[first] * spare),
        *(x if b is None else b for b in (*biases, *[None] * spare)),
        *(rows, *outs, *[outs[0]] * spare),
        *(inputs, r, k, height, first.stride(0), *sizes),
        *(b is not None for b in (*biases, *[None] * spare)),
    )
    grid = (_ceil(r, sizes[0]), count)
    done = _launched(x, partial(_linear_kernel[grid], *arguments, INTERPRETED, **OPTIONS))
    return tuple(outs) if done else None


def neurons(h: Tensor, weight_t: Tensor, rows: Tensor) -> Tensor | None:
    """:func:`skimp.kernels.neurons` of listed rows; None: it is not for these kernels.

    The list is cut into parts, whose sums are then added up in order: no atomics, so the same
    input gives the same bits.

    Args:
        h: [..., R], at most 16 in all.
        weight_t: [height, N], each row contiguous.
        rows: int32 or int64 [R].
    """
    inputs, r = h.numel() // max(1, h.shape[-1]), h.shape[-1]
    if not _takes(h, rows, inputs, weight_t) or not _by_rows(weight_t) or rows.shape[0] != r:
        return None
    height, n = weight_t.shape
    h, rows = h.contiguous(), rows.contiguous()
    out = h.new_empty((*h.shape[:-1], n))
    rows_at_once, columns, padded = tile(inputs, h.dtype)
    blocks = _ceil(n, columns)
    parts = min(_ceil(_PROGRAMS, blocks), _ceil(r, _LEAST_ROWS))
    each = _ceil(_ceil(r, parts), rows_at_once) * rows_at_once
    parts = _ceil(r, each)
    # A single part's sum is the result, and is rounded to it.
    sums = out if parts == 1 else h.new_empty((parts, inputs, n), dtype=torch.float32)
    size = inputs * n

    def launch() -> None:
        _neurons_kernel[(blocks, parts)](
            *(h, weight_t, rows, sums, inputs, r, n, height, weight_t.stride(0), each),
            *(rows_at_once, columns, padded, INTERPRETED),
            **OPTIONS,
        )
        if parts > 1:
            _add_parts[(_ceil(size, _BLOCK),)](sums, out, parts, size, _BLOCK, **OPTIONS)

    return out if _launched(h, launch) else None


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def tile(inputs: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows and columns of the weight that a program holds at once, and inputs as it counts them.

    Several inputs are a matrix product, whose sides the hardware wants to be at least 16, and
    whose operands must fit its shared memory.
    """
    return (8, 512, 1) if inputs == 1 else (32, 256 // dtype.itemsize, MOST_INPUTS)


def _takes(x: Tensor, rows: Tensor, inputs: int, *others: Tensor) -> bool:
    """Whether device, dtypes and number of inputs are what the kernels are for."""
    return (
        (x.is_cuda or INTERPRETED)
        and (x.device.type, x.dtype) not in _broken
        and x.dtype in _DTYPES
        and 0 < inputs <= MOST_INPUTS
        and rows.dim() == 1
        and rows.dtype in (torch.int32, torch.int64)
        and 0 not in (x.shape[-1], rows.shape[0])
        and all(other.dtype is x.dtype and other.numel() > 0 for other in others)
        and all(other.device == x.device for other in (rows, *others))
    )


def _by_rows(weight: Tensor) -> bool:
    """Whether each row is contiguous, and no row runs backwards or lies in the one before."""
    return weight.dim() == 2 and weight.stride(1) == 1 and weight.stride(0) >= weight.shape[1]


_broken: set[tuple[str, torch.dtype]] = set()
"""Device types and dtypes that Triton could not launch a kernel for in this process."""


def _launched(x: Tensor, launch: Callable[[], object]) -> bool:
    """Launch on the device of `x`; False, for good, where Triton cannot.

    Triton compiles a small launcher with the machine's C compiler, and knows not every GPU.
    """
    place: AbstractContextManager[object] = torch.cuda.device_of(x) if x.is_cuda else nullcontext()
    try:
        with place:
            launch()
    except Exception as error:
        _broken.add((x.device.type, x.dtype))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(
            f"Triton cannot launch kernels for {x.dtype} on {x.device} ({reason}), so chosen rows "
            "are copied instead; set SKIMP_TRITON=0 to do so from the start.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
