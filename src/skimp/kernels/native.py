"""The native library behind ctypes: thin, checked calls.

A call is one C function with one argument, the packed struct of `abi.h`: letting ctypes convert
fifteen arguments would cost several times what a small kernel does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import torch
from torch import Tensor

from skimp.kernels.build import BuildError

MOST_ROWS = 16
"""Inputs that the kernels take at once; above that, a matrix product is the better tool."""

ISAS = ("portable", "avx2", "avx512bf16")
"""Instruction sets, from the least; the number of each in `abi.h` is its place."""

_ABI = 5
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_LINEAR = {jobs: Struct(f"{7 + 6 * jobs}q") for jobs in (1, 2, 3, 4)}
_NEURONS = Struct("12q")
_ATTEND = Struct("24q2d3q")
_STORE = Struct("14q")
_NORM = Struct("5q2d2q")
_SCREEN = Struct("19q2d2q")
_FAIL_INDEX = 1

SCREEN_FEATURES = 6


@dataclass(frozen=True)
class ScreenTables:
    """Kinds of states: `centres` [C + 1, K] and `offsets` [C + 1] in the model's dtype, the last
    row being the slope of `reach` [C] (float32); the `tokens` int32 [C, R] of each. Contiguous."""

    centres: Tensor
    offsets: Tensor
    tokens: Tensor
    reach: Tensor


class Screened(NamedTuple):
    """What was seen of M states: features float32 [M, F], the likeliest token and the kind of each
    int64 [M], and the logits [M, R] of the kind's tokens."""

    features: Tensor
    token: Tensor
    kind: Tensor
    logits: Tensor


class Native:
    """A loaded library.

    The methods take what the functions of the same names in `ops` take, and return None (`store`:
    False) for what the library does not: other dtypes, strides or shapes, more than 16 rows.
    """

    def __init__(self, path: str) -> None:
        handle = ctypes.CDLL(path)
        if handle.skimp_abi() != _ABI:
            raise BuildError(f"{path} was built from another version of its source")
        self.handle = handle
        self.threads = 1
        self._isa = handle.skimp_isa
        self._linear = _function(handle, "skimp_linear")
        self._neurons = _function(handle, "skimp_neurons")
        self._attend = _function(handle, "skimp_attend")
        self._store = _function(handle, "skimp_store")
        self._norm = _function(handle, "skimp_norm")
        self._screen = _function(handle, "skimp_screen")
        self.isa = self.choose(None)

    def choose(self, isa: str | None) -> str:
        """Use this instruction set, or the best one below it that the processor has; say which.

        None: the best. It holds for every thread; not to be called while one computes.
        """
        self.isa = ISAS[self._isa(-1 if isa is None else ISAS.index(isa))]
        return self.isa

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None
    ) -> Tensor | None:
        dtype = x.dtype
        code = _DTYPES.get(dtype)
        *lead, k = x.shape
        height, width = weight.shape
        stride, step = weight.stride()
        size = x.numel()
        if code is None or width != k or step != 1 or size > MOST_ROWS * k or not size:
            return None
        if weight.dtype is not dtype or not weight.is_cpu:
            return None
        if bias is not None and not _fits(bias, dtype, height):
            return None
        if not x.is_contiguous():
            x = x.contiguous()
        if rows is not None:
            rows = _rows(rows)
        lead.append(height if rows is None else rows.shape[0])
        out = x.new_empty(lead)
        packed = _LINEAR[1].pack(
            x.data_ptr(),
            0 if rows is None else rows.data_ptr(),
            size // k,
            k,
            code,
            self.threads,
            1,
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            lead[-1],
            stride,
            height,
        )
        failed = self._linear(packed)
        if failed:
            _complain(failed, "rows", height)
        return out

    def linear_many(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        rows: Tensor | None,
    ) -> tuple[Tensor, ...] | None:
        """One output a weight, of up to four; the weights may differ in their number of rows."""
        dtype = x.dtype
        code = _DTYPES.get(dtype)
        *lead, k = x.shape
        size = x.numel()
        if code is None or not size or size > MOST_ROWS * k or not 0 < len(weights) <= 4:
            return None
        if not x.is_contiguous():
            x = x.contiguous()
        if rows is not None:
            rows = _rows(rows)
        outs: list[Tensor] = []
        jobs: list[int] = []
        for weight, bias in zip(weights, biases, strict=True):
            height, width = weight.shape
            stride, step = weight.stride()
            if weight.dtype is not dtype or width != k or step != 1 or not weight.is_cpu:
                return None
            if bias is not None and not _fits(bias, dtype, height):
                return None
            count = height if rows is None else rows.shape[0]
            out = x.new_empty((*lead, count))
            outs.append(out)
            at = 0 if bias is None else bias.data_ptr()
            jobs += (weight.data_ptr(), at, out.data_ptr(), count, stride, height)
        many = len(outs)
        at = 0 if rows is None else rows.data_ptr()
        packed = _LINEAR[many].pack(x.data_ptr(), at, size // k, k, code, self.threads, many, *jobs)
        failed = self._linear(packed)
        if failed:
            _complain(failed, "rows", min(weight.shape[0] for weight in weights))
        return tuple(outs)

    def neurons(self, h: Tensor, weight_t: Tensor, rows: Tensor | None) -> Tensor | None:
        dtype = h.dtype
        code = _DTYPES.get(dtype)
        size = h.numel()
        if code is None or not size:
            return None
        *lead, count = h.shape
        height, n = weight_t.shape
        stride, step = weight_t.stride()
        if size > MOST_ROWS * count or weight_t.dtype is not dtype or step != 1:
            return None
        if rows is not None:
            rows = _rows(rows)
        if count != (height if rows is None else rows.shape[0]) or not weight_t.is_cpu:
            return None
        if not h.is_contiguous():
            h = h.contiguous()
        out = h.new_empty((*lead, n))
        packed = _NEURONS.pack(
            h.data_ptr(),
            weight_t.data_ptr(),
            0 if rows is None else rows.data_ptr(),
            out.data_ptr(),
            size // count,
            count,
            n,
            stride,
            height,
            code,
            self.threads,
            0,
        )
        failed = self._neurons(packed)
        if failed:
            _complain(failed, "rows", height)
        return out

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> Tensor | None:
        dtype = q.dtype
        code = _DTYPES.get(dtype)
        if code is None or k.dtype is not dtype or v.dtype is not dtype:
            return None
        if valid.dtype is not torch.bool or not (k.is_cpu and v.is_cpu and valid.is_cpu):
            return None
        batch, heads, queries, d = q.shape
        _, groups, entries, dv = v.shape
        if queries > MOST_ROWS or not groups or heads % groups:
            return None
        if k.shape != (batch, groups, entries, d) or valid.shape != (batch, queries, entries):
            return None
        q_b, q_h, q_q, q_step = q.stride()
        k_b, k_h, k_s, k_step = k.stride()
        v_b, v_h, v_s, v_step = v.stride()
        m_b, m_q, m_step = valid.stride()
        if not (q_step == k_step == v_step == m_step == 1):
            return None
        if sinks is not None:
            sinks = sinks.float().contiguous()  # neither copies what already is
        out = q.new_empty((batch, queries, heads, dv))
        packed = _ATTEND.pack(
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            valid.data_ptr(),
            0 if sinks is None else sinks.data_ptr(),
            out.data_ptr(),
            *(batch, heads, groups, queries, entries, d, dv),
            *(q_b, q_h, q_q, k_b, k_h, k_s, v_b, v_h, v_s, m_b, m_q),
            scale,
            softcap,
            code,
            self.threads,
            0,
        )
        failed = self._attend(packed)
        if failed:
            _complain(failed, "valid", entries)
        return out

    def store(self, cache: Tensor, new: Tensor, index: Tensor) -> bool:
        """Whether the library took the call; `new` is then in the cache."""
        if new.dtype is not cache.dtype or index.dtype is not torch.int64 or not new.is_cpu:
            return False
        batch, heads, entries, d = cache.shape
        if new.shape != (batch, heads, index.shape[0], d) or not index.is_contiguous():
            return False
        cache_b, cache_h, cache_s, cache_step = cache.stride()
        new_b, new_h, new_q, new_step = new.stride()
        if cache_step != 1 or new_step != 1 or not index.is_cpu:
            return False
        size = cache.element_size()
        packed = _STORE.pack(
            cache.data_ptr(),
            new.data_ptr(),
            index.data_ptr(),
            *(batch, heads, entries, index.shape[0], d * size),
            *(cache_b * size, cache_h * size, cache_s * size),
            *(new_b * size, new_h * size, new_q * size),
        )
        failed = self._store(packed)
        if failed:
            _complain(failed, "index", entries)
        return True

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, offset: float, round_first: bool
    ) -> Tensor | None:
        dtype = x.dtype
        code = _DTYPES.get(dtype)
        size = x.numel()
        if code is None or not size or weight.dtype is not dtype:
            return None
        k = x.shape[-1]
        if weight.shape != (k,) or not (weight.is_cpu and weight.is_contiguous()):
            return None
        if not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty_like(x)
        packed = _NORM.pack(
            x.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            size // k,
            k,
            eps,
            offset,
            round_first,
            code,
        )
        self._norm(packed)
        return out

    def screen(
        self,
        z: Tensor,
        tables: ScreenTables,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        softcap: float,
        before: Tensor | None,
    ) -> Screened | None:
        code = _DTYPES.get(z.dtype)
        many, k = z.shape
        height = weight.shape[0]
        parts = (z, tables.centres, tables.offsets, weight)
        if code is None or not 0 < many <= MOST_ROWS or weight.shape[1] != k:
            return None
        if any(not part.is_cpu or part.dtype is not z.dtype for part in parts):
            return None
        if weight.stride(1) != 1 or (bias is not None and not _fits(bias, z.dtype, height)):
            return None
        kinds, count = tables.tokens.shape
        z = z.contiguous()
        near, logits = z.new_empty(many, kinds + 1), z.new_empty(many, count)
        features = z.new_empty(many, SCREEN_FEATURES, dtype=torch.float32)
        token, kind = z.new_empty(2, many, dtype=torch.int64)
        packed = _SCREEN.pack(
            z.data_ptr(),
            tables.centres.data_ptr(),
            tables.offsets.data_ptr(),
            tables.tokens.data_ptr(),
            tables.reach.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if before is None else before.data_ptr(),
            near.data_ptr(),
            logits.data_ptr(),
            features.data_ptr(),
            token.data_ptr(),
            kind.data_ptr(),
            *(many, k, kinds, count, weight.stride(0), height),
            scale,
            softcap,
            code,
            self.threads,
        )
        failed = self._screen(packed)
        if failed:
            _complain(failed, "tokens", height)
        return Screened(features, token, kind, logits)


def _function(handle: ctypes.CDLL, name: str) -> Callable[[bytes], int]:
    function = handle[name]
    function.argtypes = (ctypes.c_char_p,)  # a struct of bytes, handed over as it is
    function.restype = ctypes.c_int
    return function


def _fits(bias: Tensor, dtype: torch.dtype, height: int) -> bool:
    good = bias.dtype is dtype and bias.is_cpu and bias.is_contiguous()
    return good and bias.shape == (height,)


def _rows(rows: Tensor) -> Tensor:
    """A list of rows as the library reads it: int32, one after the other."""
    if rows.dtype is torch.int32 and rows.is_contiguous():
        return rows
    return rows.to(torch.int32).contiguous()


def _complain(code: int, name: str, height: int) -> None:
    if code == _FAIL_INDEX:
        raise IndexError(f"{name} must lie in 0 .. {height - 1}.")
    raise MemoryError("no memory left for the kernel to work in.")
