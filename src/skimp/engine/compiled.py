"""Decoding by a step that torch compiles: for GPUs, and for what the native program does not do."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from skimp.engine.runners import SlotRunner
from skimp.engine.slots import Slot, SlotShape
from skimp.engine.state import State

_BUCKET = 256
"""Capacities are multiples of this, so that requests of about one size share recorded graphs."""


class CompiledRunner(SlotRunner):
    """Prefills as its parent does and decodes by one compiled graph a batch size.

    The graph takes the request's tensors as arguments and leaves the length of its slots open, so
    neither prompts nor requests of other lengths compile anew. On a GPU it is recorded as a CUDA
    graph; nothing in a step waits for the device.
    """

    def __init__(
        self, model: Any, shapes: Mapping[int, SlotShape], *, backend: str = "inductor"
    ) -> None:
        super().__init__(model, shapes)
        records = self.like.device.type == "cuda" and backend == "inductor"
        self._bucket = _BUCKET if records else 1
        options: dict[str, Any] = {"mode": "reduce-overhead"} if records else {}
        self._records = records
        self._step: Callable[..., Tensor] = torch.compile(
            self._flat_step, fullgraph=True, backend=backend, **options
        )

    def new_cache(self, batch: int, capacity: int) -> dict[int, Slot]:
        cache = super().new_cache(batch, self._rounded(capacity))
        for slot in cache.values():
            for tensor in (slot.keys, slot.values):
                if self._records:
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
        if self._records:
            torch.compiler.cudagraph_mark_step_begin()
        logits = self._step(tokens.contiguous(), at, state.pads, *flat)
        return logits.clone() if self._records else logits

    def _flat_step(self, tokens: Tensor, at: Tensor, pads: Tensor, *flat: Tensor) -> Tensor:
        pairs = zip(flat[::2], flat[1::2], strict=True)
        slots = {
            index: Slot(*pair, shape.window)
            for (index, shape), pair in zip(self.shapes.items(), pairs, strict=True)
        }
        return self.step(slots, pads, at, tokens)

    def _rounded(self, capacity: int) -> int:
        return -(-capacity // self._bucket) * self._bucket
