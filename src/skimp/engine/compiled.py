"""Decoding by a step that torch compiles: for GPUs, and for what the native program does not do."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skimp.engine import shadow
from skimp.engine.runners import SlotRunner
from skimp.engine.slots import Slot, SlotShape
from skimp.engine.state import State
from skimp.methods.experts.modules import GUIDE, Guide, NeuronsIn, NeuronsOut

_BUCKET = 256
"""Capacities are multiples of this, so that requests of about one size share recorded graphs."""


class CompiledRunner(SlotRunner):
    """Prefills as its parent does and decodes by one compiled graph a batch size.

    The graph takes the request's tensors as arguments and leaves the length of its slots open, so
    neither prompts nor requests of other lengths compile anew. On a GPU it is recorded as a CUDA
    graph; nothing in a step waits for the device.

    Where prompts choose neurons, the guide of the step is an argument too. The compiler cannot
    trace the variable of the context that it stands in, so a twin of the model is compiled that
    takes it from hand to hand.
    """

    fixed = True

    def __init__(
        self,
        model: Any,
        shapes: Mapping[int, SlotShape],
        places: Collection[int] = (),
        *,
        backend: str = "inductor",
    ) -> None:
        super().__init__(model, shapes, places)
        self._hand = _Hand()
        if any(isinstance(module, NeuronsIn) for module in model.modules()):
            self.decoder = _handed(model, self._hand)
        records = self.like.device.type == "cuda" and backend == "inductor"
        self._bucket = _BUCKET if records else 1
        options: dict[str, Any] = {"mode": "reduce-overhead"} if records else {}
        self.records = records
        self._step: Callable[..., Tensor] = torch.compile(
            self._flat_step, fullgraph=True, backend=backend, **options
        )

    def new_cache(self, batch: int, capacity: int) -> dict[int, Slot]:
        cache = super().new_cache(batch, self._rounded(capacity))
        for slot in cache.values():
            for tensor in (slot.keys, slot.values):
                if self.records:
                    torch._dynamo.mark_static_address(tensor)
                else:
                    torch._dynamo.mark_dynamic(tensor, 2)
        return cache

    def cache_bytes(self, batch: int, capacity: int) -> int:
        return super().cache_bytes(batch, self._rounded(capacity))

    def decode(self, state: State, tokens: Tensor) -> Tensor:
        at = torch.full((1,), state.length, device=state.pads.device)
        slots: dict[int, Slot] = state.cache
        flat = [t for index in self.shapes for t in (slots[index].keys, slots[index].values)]
        if self.records:
            torch.compiler.cudagraph_mark_step_begin()
        # A graph is made for one stride and kind of tensor; callers' tokens have any.
        tokens = tokens.clone(memory_format=torch.contiguous_format)
        logits = self._step(GUIDE.get(), tokens, at, state.pads, *flat)
        return logits.clone() if self.records else logits

    def _flat_step(
        self, guide: Guide | None, tokens: Tensor, at: Tensor, pads: Tensor, *flat: Tensor
    ) -> Tensor:
        self._hand.guide = guide
        pairs = zip(flat[::2], flat[1::2], strict=True)
        slots = {
            index: Slot(*pair, shape.window)
            for (index, shape), pair in zip(self.shapes.items(), pairs, strict=True)
        }
        logits = self.step(slots, pads, at, tokens)
        self._hand.guide = None
        return logits

    def _rounded(self, capacity: int) -> int:
        return -(-capacity // self._bucket) * self._bucket


class _Hand:
    """Holds a step's guide while it runs."""

    guide: Guide | None = None


class _Entering(nn.Module):
    def __init__(self, inner: NeuronsIn, hand: _Hand) -> None:
        super().__init__()
        self.inner, self.hand = inner, hand

    def forward(self, x: Tensor) -> Tensor:
        guide = self.hand.guide
        return self.inner.dense(x) if guide is None else guide.enter(self.inner, x)


class _Leaving(nn.Module):
    def __init__(self, inner: NeuronsOut, hand: _Hand) -> None:
        super().__init__()
        self.inner, self.hand = inner, hand

    def forward(self, h: Tensor) -> Tensor:
        guide = self.hand.guide
        return self.inner.dense(h) if guide is None else guide.leave(self.inner, h)


def _handed(model: nn.Module, hand: _Hand) -> Any:
    """A twin of `model` over the same weights whose FFs take their guide from `hand`."""
    twin = shadow.shadow(model)
    for path, module in list(twin.named_modules()):
        if isinstance(module, NeuronsIn):
            twin.set_submodule(path, _Entering(module, hand))
        elif isinstance(module, NeuronsOut):
            twin.set_submodule(path, _Leaving(module, hand))
    return twin
