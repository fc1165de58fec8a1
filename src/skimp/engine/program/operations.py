"""How each ATen operation of a decode step becomes operations of the program.

A new operation joins by an entry in `LOWERED`: a function of the lowering, the result and the
operation's own arguments, all of them tensors without storage.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skimp.engine.program.listing import NotLowered
from skimp.engine.program.lower import Lowering

aten = torch.ops.aten
Handler = Callable[..., None]


def _unary(op: str) -> Handler:
    def handler(lowering: Lowering, out: Tensor, x: Tensor, *rest: Any, **options: Any) -> None:
        lowering.map(op, out, x)

    return handler


def _binary(op: str) -> Handler:
    def handler(lowering: Lowering, out: Tensor, x: Any, y: Any, alpha: float = 1) -> None:
        if not isinstance(x, Tensor):
            raise NotLowered(f"{op} of a number and a tensor")
        if isinstance(y, Tensor):
            lowering.map(op, out, x, y, scalars=(float(alpha), 0.0))
        else:
            lowering.map(op, out, x, scalars=(float(alpha), float(y)))

    return handler


def _gelu(lowering: Lowering, out: Tensor, x: Tensor, approximate: str = "none") -> None:
    lowering.map("gelu_tanh" if approximate == "tanh" else "gelu", out, x)


def _power(lowering: Lowering, out: Tensor, x: Tensor, exponent: float) -> None:
    if exponent == 2:
        lowering.map("square", out, x)
    else:
        lowering.map("power", out, x, scalars=(float(exponent),))


def _clamp(
    lowering: Lowering, out: Tensor, x: Tensor, low: float | None = None, high: float | None = None
) -> None:
    wide = 2.0**62  # also as an integer
    lowering.map(
        "clamp", out, x, scalars=(-wide if low is None else low, wide if high is None else high)
    )


def _zeros(lowering: Lowering, out: Tensor, like: Tensor, **options: Any) -> None:
    lowering.map("fill", out, out, scalars=(0.0, 0.0))


def _reduced(mean: bool) -> Handler:
    def handler(
        lowering: Lowering, out: Tensor, x: Tensor, dims: Any, keep: bool = False, **options: Any
    ) -> None:
        if len(dims) != 1 or dims[0] % x.dim() != x.dim() - 1:
            raise NotLowered("a sum over other dimensions than the last")
        count = x.shape[-1]
        wide = out if keep else out.unsqueeze(-1)
        lowering.emit("reduce", wide.expand(x.shape), x, scale=1 / count if mean else 1.0)

    return handler


def _cat(lowering: Lowering, out: Tensor, tensors: list[Tensor], dim: int = 0) -> None:
    start = 0
    for tensor in tensors:
        lowering.map("copy", out.narrow(dim, start, tensor.shape[dim]), tensor)
        start += tensor.shape[dim]


def _stack(lowering: Lowering, out: Tensor, tensors: list[Tensor], dim: int = 0) -> None:
    for index, tensor in enumerate(tensors):
        lowering.map("copy", out.select(dim, index), tensor)


def _embedding(lowering: Lowering, out: Tensor, table: Tensor, index: Tensor, *rest: Any) -> None:
    if table.stride(-1) != 1 or not index.is_contiguous():
        raise NotLowered("a table whose rows are not contiguous")
    lowering.emit("gather", out, table, index)


def _mm(lowering: Lowering, out: Tensor, x: Tensor, weight: Tensor) -> None:
    _addmm(lowering, out, None, x, weight)


def _addmm(
    lowering: Lowering, out: Tensor, bias: Tensor | None, x: Tensor, weight: Tensor, **scales: Any
) -> None:
    rows = weight.t()
    if scales or (bias is not None and not bias.is_contiguous()):
        raise NotLowered("a matrix product that is no linear layer's")
    taken, copied = lowering.contiguous(x)
    if rows.stride(1) == 1:
        lowering.emit("linear", taken, out, rows, bias)
    elif weight.stride(1) == 1:  # stored the other way round (GPT-2)
        lowering.emit("neurons", out, taken, weight)
        if bias is not None:
            lowering.map("add", out, out, bias, scalars=(1.0, 0.0))
    else:
        raise NotLowered("a matrix whose rows and columns are both scattered")
    if copied:
        lowering.drop(taken)


def _bmm(lowering: Lowering, out: Tensor, x: Tensor, y: Tensor) -> None:
    """Outer products, as rotary embeddings take them of frequencies and positions.

    Or one matrix for the whole batch: so torch takes a linear layer of a strided input.
    """
    if x.shape[2] == 1:
        lowering.map("mul", out, x, y)
    elif len(y) == 1 or y.stride(0) == 0:
        taken, copied = lowering.contiguous(x)
        _addmm(lowering, out.flatten(0, 1), None, taken.flatten(0, 1), y[0])
        if copied:
            lowering.drop(taken)
    else:
        raise NotLowered("matrix products of activations")


def _neurons_in(
    lowering: Lowering, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, layer: int
) -> None:
    flat, copied = lowering.contiguous(x.reshape(-1, x.shape[-1]))
    lowering.thin(out, layer, weight.shape[0])
    lowering.emit("linear", flat, out, weight, bias, neurons=(layer, weight.shape[0]))
    if copied:
        lowering.drop(flat)


def _neurons_out(
    lowering: Lowering, out: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, layer: int
) -> None:
    if not h.is_contiguous():
        raise NotLowered("neurons that do not lie in a row")
    flat, neurons = h.reshape(-1, h.shape[-1]), (layer, weight.shape[0])
    lowering.emit("mask", flat, neurons=neurons)
    lowering.emit("neurons", out, flat, weight, neurons=neurons)
    if bias is not None:
        lowering.map("add", out, out, bias, scalars=(1.0, 0.0))


def _layer_norm(
    lowering: Lowering,
    out: tuple[Tensor, ...],
    x: Tensor,
    shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> None:
    if len(shape) != 1 or any(w is not None and w.dtype != x.dtype for w in (weight, bias)):
        raise NotLowered("a layer norm of mixed types or over several dimensions")
    taken, copied = lowering.contiguous(x)
    lowering.emit("layer_norm", out[0], taken, weight, bias, eps=eps)
    if copied:
        lowering.drop(taken)


def _attend(
    lowering: Lowering,
    out: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sinks: Tensor | None,
    slot: int,
    scale: float,
    softcap: float,
) -> None:
    if sinks is not None:
        raise NotLowered("attention sinks")
    made = [
        lowering.contiguous(t) if t.stride(-1) != 1 else (t, False) for t in (query, keys, values)
    ]
    lowering.emit("attend", out, *(t for t, _ in made), slot=slot, scale=scale, softcap=softcap)
    for tensor, copied in made:
        if copied:
            lowering.drop(tensor)


def _store(lowering: Lowering, out: Tensor, keys: Tensor, values: Tensor, slot: int) -> None:
    made = [lowering.contiguous(t) if t.stride(-1) != 1 else (t, False) for t in (keys, values)]
    lowering.emit("store", *(t for t, _ in made), slot=slot)
    for tensor, copied in made:
        if copied:
            lowering.drop(tensor)


def _mark(lowering: Lowering, out: Tensor, hidden: Tensor, place: int) -> None:
    lowering.map("copy", out, hidden)
    lowering.emit("mark", out, place=place)


LOWERED: dict[Any, Handler] = {
    aten._to_copy.default: _unary("copy"),
    aten.zeros_like.default: _zeros,
    aten.clone.default: _unary("copy"),
    aten.neg.default: _unary("neg"),
    aten.cos.default: _unary("cos"),
    aten.sin.default: _unary("sin"),
    aten.rsqrt.default: _unary("rsqrt"),
    aten.sqrt.default: _unary("sqrt"),
    aten.silu.default: _unary("silu"),
    aten.relu.default: _unary("relu"),
    aten.sigmoid.default: _unary("sigmoid"),
    aten.tanh.default: _unary("tanh"),
    aten.exp.default: _unary("exp"),
    aten.abs.default: _unary("abs"),
    aten.reciprocal.default: _unary("reciprocal"),
    aten.gelu.default: _gelu,
    aten.pow.Tensor_Scalar: _power,
    aten.clamp.default: _clamp,
    aten.add.Tensor: _binary("add"),
    aten.sub.Tensor: _binary("sub"),
    aten.mul.Tensor: _binary("mul"),
    aten.div.Tensor: _binary("div"),
    aten.mean.dim: _reduced(mean=True),
    aten.sum.dim_IntList: _reduced(mean=False),
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.embedding.default: _embedding,
    aten.mm.default: _mm,
    aten.bmm.default: _bmm,
    aten.addmm.default: _addmm,
    aten.native_layer_norm.default: _layer_norm,
    torch.ops.skimp_program.attend.default: _attend,
    torch.ops.skimp_program.store.default: _store,
    torch.ops.skimp_program.mark.default: _mark,
    torch.ops.skimp_program.neurons_in.default: _neurons_in,
    torch.ops.skimp_program.neurons_out.default: _neurons_out,
}
