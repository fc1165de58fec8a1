"""How a captured step names what is not ATen's: attention, thinned FFs, places to enter and leave.

Attention appears as one operation a slot, since slots belong to the request and are only known when
the step runs.
"""

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from skimp.engine.gates import Run, Stored
from skimp.engine.program.listing import NotLowered
from skimp.engine.slots import Entry
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut

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


_library.define("store(Tensor keys, Tensor values, int slot) -> Tensor")
_library.define("mark(Tensor hidden, int place) -> Tensor")


@torch.library.register_fake("skimp_program::store", lib=_library)
def _(keys: Tensor, values: Tensor, slot: int) -> Tensor:
    return keys.new_empty(0)


@torch.library.register_fake("skimp_program::mark", lib=_library)
def _(hidden: Tensor, place: int) -> Tensor:
    return torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)


_library.define("neurons_in(Tensor x, Tensor weight, Tensor? bias, int layer) -> Tensor")
_library.define("neurons_out(Tensor h, Tensor weight, Tensor? bias, int layer) -> Tensor")


@torch.library.register_fake("skimp_program::neurons_in", lib=_library)
def _(x: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("skimp_program::neurons_out", lib=_library)
def _(h: Tensor, weight: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return h.new_empty(*h.shape[:-1], weight.shape[1])


class Naming:
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
class NamedSlot:
    """Stands for a slot by its index; what is only stored joins the list `stored`."""

    index: int
    stored: list[Tensor]

    def attend(
        self, query: Tensor, entry: Entry, scale: float, softcap: float, sinks: Tensor | None
    ) -> Tensor:
        if entry.run.storing:
            ops = torch.ops.skimp_program
            self.stored.append(ops.store(entry.keys, entry.values, self.index))
            raise Stored
        return torch.ops.skimp_program.attend(
            query, entry.keys, entry.values, sinks, self.index, scale, softcap
        )


@dataclass(frozen=True)
class Marking:
    """Marks the hidden state at `places`; place i is before layer i."""

    places: frozenset[int]

    def layer(self, index: int, run: Run, hidden: Tensor) -> Tensor:
        if index in self.places:
            hidden = torch.ops.skimp_program.mark(hidden, index)
        hidden = run(hidden)
        last = index + 1 == max(self.places, default=0)
        return torch.ops.skimp_program.mark(hidden, index + 1) if last else hidden


@dataclass(frozen=True)
class Projecting:
    """Has the layers in `attentive` store the keys and values of one hidden state."""

    hidden: Tensor
    attentive: frozenset[int]

    def layer(self, index: int, run: Run, hidden: Tensor) -> Tensor:
        if index in self.attentive:
            with suppress(Stored):
                run(torch.ops.skimp_program.mark(self.hidden, index))
        return hidden
