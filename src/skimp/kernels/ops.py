"""The kernels as torch operators, ``torch.ops.skimp.*``, and as the functions to call.

Operators are what a compiled graph and a tracer see. Called plainly, on CPU tensors, the functions
here go straight to the native library: a token takes hundreds of calls, and each passage through
torch's dispatcher costs about as much as a small kernel. On GPUs Triton's kernels read the chosen
rows of a weight. Whatever neither takes (other devices and dtypes, more than 16 rows, a machine
without a compiler or Triton) the reference computes.

For inference only: no operator has a derivative.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.library import Library, register_fake

from skimp.kernels import reference
from skimp.kernels.library import at_hand as find

_NONE = (None, None, None)

# The decorators of torch.library wrap every call in Python of their own; a Library does not.
_LIBRARY = Library("skimp", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias=None, Tensor? rows=None) -> Tensor")
_LIBRARY.define(
    "linear2(Tensor x, Tensor w1, Tensor w2, Tensor? b1=None, Tensor? b2=None, "
    "Tensor? rows=None) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "linear3(Tensor x, Tensor w1, Tensor w2, Tensor w3, Tensor? b1=None, Tensor? b2=None, "
    "Tensor? b3=None, Tensor? rows=None) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define("neurons(Tensor h, Tensor weight_t, Tensor? rows=None) -> Tensor")
_LIBRARY.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor valid, float scale, float softcap=0.0, "
    "Tensor? sinks=None) -> Tensor"
)
_LIBRARY.define("store(Tensor(a!) cache, Tensor new, Tensor index) -> ()")
_LIBRARY.define(
    "rms_norm(Tensor x, Tensor weight, float eps, float offset=0.0, bool round_first=True) "
    "-> Tensor"
)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """``x [..., K] · weight[rows] [R, K]ᵀ (+ bias[rows])``, each row of the weight read once.

    Args:
        x: [..., K].
        weight: [N, K], rows may be apart (a slice of columns of a wider matrix).
        bias: [N].
        rows: int32 [R], which rows of `weight` and `bias`; None: all, in order.

    Returns:
        [..., R] in the dtype of `x`.

    Raises:
        IndexError: `rows` points outside of `weight`. Not on a GPU, where knowing it would take
            a wait for the device: there Triton's kernels read nothing outside of the weight and
            give NaN, and the reference ends in torch's own device-side assertion.
    """
    if _plain(x):
        return _linear(x, weight, bias, rows)
    return torch.ops.skimp.linear(x, weight, bias, rows)


def linear_many(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """:func:`linear` of one input by several weights ``[N_i, K]``, in one call for up to three.

    Args:
        x: [..., K].
        weights: query, key and value; or gate and up.
        biases: one [N_i] or None a weight; None: none at all.
        rows: int32 [R], the same for every weight.
    """
    if biases is None:
        biases = _NONE[: len(weights)] if len(weights) <= 3 else (None,) * len(weights)
    if len(weights) not in (2, 3):
        pairs = zip(weights, biases, strict=True)
        return tuple(linear(x, weight, bias, rows) for weight, bias in pairs)
    if not _plain(x):
        operator = torch.ops.skimp.linear2 if len(weights) == 2 else torch.ops.skimp.linear3
        return operator(x, *weights, *biases, rows)
    return _linears(x, weights, biases, rows)


def neurons(h: Tensor, weight_t: Tensor, rows: Tensor | None = None) -> Tensor:
    """``h [..., R] · weight_t[rows] [R, N]``: a down projection whose neurons lie in rows.

    Args:
        h: [..., R], the activation of each neuron.
        weight_t: [neurons, N], a neuron's contribution to the output in each row.
        rows: int32 [R], which neurons; None: all, in order.

    Returns:
        [..., N] in the dtype of `h`.

    Raises:
        IndexError: `rows` points outside of `weight_t`; on a GPU as in :func:`linear`.
    """
    return _neurons(h, weight_t, rows) if _plain(h) else torch.ops.skimp.neurons(h, weight_t, rows)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of new queries over a cache; see :func:`skimp.kernels.reference.attend`.

    Returns:
        [B, Q, Hq, Dv], contiguous.
    """
    if _plain(q):
        return _attend(q, k, v, valid, scale, softcap, sinks)
    return torch.ops.skimp.attend(q, k, v, valid, scale, softcap, sinks)


def store(cache: Tensor, new: Tensor, index: Tensor) -> None:
    """Write ``new [B, H, Q, D]`` into ``cache [B, H, S, D]`` at the entries ``index`` int64 [Q].

    Raises:
        IndexError: an entry lies outside of the cache; nothing was written.
    """
    if _plain(cache):
        _store(cache, new, index)
    else:
        torch.ops.skimp.store(cache, new, index)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, round_first: bool = True
) -> Tensor:
    """Root-mean-square norm over the last dimension; see ``reference.rms_norm``."""
    if _plain(x):
        return _rms_norm(x, weight, eps, offset, round_first)
    return torch.ops.skimp.rms_norm(x, weight, eps, offset, round_first)


def _plain(x: Tensor) -> bool:
    """Whether no compiler, tracer, dispatch mode or tensor subclass needs to see the operator."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and not torch._C._len_torch_dispatch_stack()
    )


# What the operators do on a CPU: the native library if it takes the call, else the reference.


def _linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    library = find()
    if library is not None:
        out = library.linear(x, weight, bias, rows)
        if out is not None:
            return out
    return reference.linear(x, weight, bias, rows)


def _linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: Tensor | None
) -> tuple[Tensor, ...]:
    library = find()
    if library is not None and (many := library.linear_many(x, weights, biases, rows)):
        return many
    pairs = zip(weights, biases, strict=True)
    return tuple(reference.linear(x, weight, bias, rows) for weight, bias in pairs)


def _linear2(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return _linears(x, (w1, w2), (b1, b2), rows)


def _linear3(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    w3: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    b3: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return _linears(x, (w1, w2, w3), (b1, b2, b3), rows)


def _neurons(h: Tensor, weight_t: Tensor, rows: Tensor | None = None) -> Tensor:
    library = find()
    if library is not None:
        out = library.neurons(h, weight_t, rows)
        if out is not None:
            return out
    return reference.neurons(h, weight_t, rows)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    library = find()
    if library is not None:
        out = library.attend(q, k, v, valid, scale, softcap, sinks)
        if out is not None:
            return out
    return reference.attend(q, k, v, valid, scale, softcap, sinks)


def _store(cache: Tensor, new: Tensor, index: Tensor) -> None:
    library = find()
    if library is None or not library.store(cache, new, index):
        reference.store(cache, new, index)


def _rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, round_first: bool = True
) -> Tensor:
    library = find()
    if library is not None:
        out = library.rms_norm(x, weight, eps, offset, round_first)
        if out is not None:
            return out
    return reference.rms_norm(x, weight, eps, offset, round_first)


# Other devices take the reference, whose parts they run themselves.


def _linears_reference(x, weights, biases, rows):
    pairs = zip(weights, biases, strict=True)
    return tuple(reference.linear(x, weight, bias, rows) for weight, bias in pairs)


def _linear2_reference(x, w1, w2, b1=None, b2=None, rows=None):
    return _linears_reference(x, (w1, w2), (b1, b2), rows)


def _linear3_reference(x, w1, w2, w3, b1=None, b2=None, b3=None, rows=None):
    return _linears_reference(x, (w1, w2, w3), (b1, b2, b3), rows)


# On GPUs Triton's kernels read listed rows where they lie; all rows are torch's to multiply by.


@functools.cache
def triton_rows() -> ModuleType | None:
    """The module of Triton's kernels; None without Triton, or where SKIMP_TRITON turns it off."""
    if os.environ.get("SKIMP_TRITON", "1").strip().lower() in ("0", "off", "false", "no"):
        return None
    try:
        from skimp.kernels import triton_rows as found
    except (ImportError, OSError):  # OSError: libraries of another system
        return None
    return found


def _linear_gpu(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    return _linears_gpu(x, (weight,), (bias,), rows)[0]


def _linears_gpu(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: Tensor | None
) -> tuple[Tensor, ...]:
    if rows is not None and (found := triton_rows()):
        many = found.linear_many(x, weights, biases, rows)
        if many is not None:
            return many
    return _linears_reference(x, weights, biases, rows)


def _linear2_gpu(x, w1, w2, b1=None, b2=None, rows=None):
    return _linears_gpu(x, (w1, w2), (b1, b2), rows)


def _linear3_gpu(x, w1, w2, w3, b1=None, b2=None, b3=None, rows=None):
    return _linears_gpu(x, (w1, w2, w3), (b1, b2, b3), rows)


def _neurons_gpu(h: Tensor, weight_t: Tensor, rows: Tensor | None = None) -> Tensor:
    if rows is not None and (found := triton_rows()):
        out = found.neurons(h, weight_t, rows)
        if out is not None:
            return out
    return reference.neurons(h, weight_t, rows)


def _linear_fake(x: Tensor, weight: Tensor, bias=None, rows: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] if rows is None else rows.shape[0]))


def _linear2_fake(x, w1, w2, b1=None, b2=None, rows=None):
    return _linear_fake(x, w1, b1, rows), _linear_fake(x, w2, b2, rows)


def _linear3_fake(x, w1, w2, w3, b1=None, b2=None, b3=None, rows=None):
    return tuple(_linear_fake(x, weight, None, rows) for weight in (w1, w2, w3))


def _neurons_fake(h: Tensor, weight_t: Tensor, rows: Tensor | None = None) -> Tensor:
    return h.new_empty((*h.shape[:-1], weight_t.shape[1]))


def _attend_fake(q, k, v, valid, scale, softcap=0.0, sinks=None) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))


def _store_fake(cache, new, index) -> None:
    return None


def _rms_norm_fake(x, weight, eps, offset=0.0, round_first=True) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _name, _cpu, _anywhere, _fake in (
    ("linear", _linear, reference.linear, _linear_fake),
    ("linear2", _linear2, _linear2_reference, _linear2_fake),
    ("linear3", _linear3, _linear3_reference, _linear3_fake),
    ("neurons", _neurons, reference.neurons, _neurons_fake),
    ("attend", _attend, reference.attend, _attend_fake),
    ("store", _store, reference.store, _store_fake),
    ("rms_norm", _rms_norm, reference.rms_norm, _rms_norm_fake),
):
    _LIBRARY.impl(_name, _cpu, "CPU")
    _LIBRARY.impl(_name, _anywhere, "CompositeExplicitAutograd")
    register_fake(f"skimp::{_name}", _fake, lib=_LIBRARY)

for _name, _gpu in (
    ("linear", _linear_gpu),
    ("linear2", _linear2_gpu),
    ("linear3", _linear3_gpu),
    ("neurons", _neurons_gpu),
):
    _LIBRARY.impl(_name, _gpu, "CUDA")
