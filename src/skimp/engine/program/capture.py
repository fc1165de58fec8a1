"""One decode step of a model as a list of ATen operations, read off the model's own code.

The code is run once on tensors without storage and every operation it asks of torch is noted, with
its arguments and results. Attention appears as one operation a slot, since the slots belong to the
request and are only known when the step runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skimp.engine import shadow
from skimp.engine.probing import keeps_logits
from skimp.engine.program.listing import NotLowered
from skimp.engine.slots import Entry, Pass, SlotCache, SlotShape
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut, guided

TOKENS, POSITIONS = "tokens", "positions"

_library = torch.library.Library("skimp_program", "DEF")
_library.define(
    "attend(Tensor query, Tensor keys, Tensor values, Tensor? sinks, int slot, float scale, "
    "float softcap) -> Tensor"
)


@torch.library.register_fake("skimp_program::attend", lib=_library)
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sinks: Tensor | None,
    slot: int,
    scale: float,
    softcap: float,
) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, values.shape[3])


_library.define("neurons_in(Tensor x, Tensor weight, Tensor? bias, int layer) -> Tensor")
_library.define("neurons_out(Tensor h, Tensor weight, Tensor? bias, int layer) -> Tensor")


@torch.library.register_fake("skimp_program::neurons_in", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("skimp_program::neurons_out", lib=_library)
def _(h: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return h.new_empty(*h.shape[:-1], weight.shape[1])


class _Naming:
    """Notes the maps of an FF whose neurons are the request's as what they are."""

    def enter(self, module: NeuronsIn, x: Tensor) -> Tensor:
        if module.fused:
            raise NotLowered("gate and up in one matrix, of which a plan keeps some neurons")
        ops = torch.ops.skimp_program
        return ops.neurons_in(x, module.weight, module.bias, module.layer)

    def leave(self, module: NeuronsOut, h: Tensor) -> Tensor:
        ops = torch.ops.skimp_program
        return ops.neurons_out(h, module.weight, module.bias, module.layer)


@dataclass(frozen=True)
class _NamedSlot:
    """Stands for a slot by its index."""

    index: int

    def attend(
        self, query: Tensor, entry: Entry, scale: float, softcap: float, sinks: Tensor | None
    ) -> Tensor:
        return torch.ops.skimp_program.attend(
            query, entry.keys, entry.values, sinks, self.index, scale, softcap
        )


@dataclass(frozen=True)
class Call:
    """One operation that was asked for; all tensors are without storage."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclass(frozen=True)
class Captured:
    """A decode step: `inputs` are weights and buffers by path, and what changes from step to step.

    A tensor of a call is known by its storage, which an input, or the first call that made it,
    brought in.
    """

    inputs: Mapping[str, Tensor]
    calls: tuple[Call, ...]
    logits: Tensor


class _Tape(TorchDispatchMode):
    """Notes operations. Numbers that code writes into a tensor and reads back stay numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._written: dict[int, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            key = storage_key(args[0])
            if key not in self._written:
                raise NotLowered("code that asks for a value")
            return self._written[key]
        result = func(*args, **(kwargs or {}))
        self.calls.append(Call(func, args, kwargs or {}, result))
        if func is aten.full.default:
            self._written[storage_key(result)] = args[1]
        return result


# In inference mode torch hands on whole functions instead of the operations they are made of.
@torch.inference_mode(False)
@torch.no_grad()
def capture(model: Any, shapes: Mapping[int, SlotShape], batch: int) -> Captured:
    """The decode step of a slot model for `batch` sequences: tokens, positions [B, 1] -> [B, V].

    Raises:
        NotLowered: the model's code asks for values while it is read.
    """
    meta = shadow.on_meta(model)
    tokens, positions = (torch.zeros(batch, 1, dtype=torch.long, device="meta") for _ in range(2))
    inputs = {
        **dict(meta.named_parameters()),
        **dict(meta.named_buffers()),
        TOKENS: tokens,
        POSITIONS: positions,
    }
    run = Pass(torch.zeros(batch, dtype=torch.long, device="meta"), padded=True, queries=1, start=0)
    slots = {index: _NamedSlot(index) for index in shapes}
    last = {"logits_to_keep": 1} if keeps_logits(meta) else {}
    with guided(_Naming()), _Tape() as tape:
        output = meta(
            input_ids=tokens,
            position_ids=positions,
            past_key_values=SlotCache(slots, run),
            use_cache=True,
            **last,
        )
        logits = output.logits[:, -1]
    return Captured(inputs, tuple(_needed(tape.calls, logits)), logits)


def _needed(calls: list[Call], logits: Tensor) -> list[Call]:
    """The calls that the logits hang on, in order."""
    wanted = {storage_key(logits)}
    kept = []
    for call in reversed(calls):
        if any(storage_key(tensor) in wanted for tensor in tensors(call.result)):
            kept.append(call)
            wanted.update(storage_key(t) for t in tensors((call.args, call.kwargs)))
    return kept[::-1]


def tensors(tree: Any) -> list[Tensor]:
    """The tensors among an operation's arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_key(tensor: Tensor) -> int:
    """The same for a tensor and its views."""
    return tensor.untyped_storage()._cdata
