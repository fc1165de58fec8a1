"""The static KV cache of a request: one slot for each attention that is kept, and nothing more.

A slot holds the keys and values of one attention, [B, heads, size, width]. Entry `position % size`
is where a token at `position` (its column in the left-padded batch) stands. The size is the
request's capacity, or the attention's sliding window where that is shorter: then the oldest entry
makes way.

transformers' attention asks its cache for keys and values and hands them to an attention function.
Here the cache answers with an :class:`Entry`, which carries the slot and the pass through the
modelling code to :func:`skimp.engine.attention.attend`. So masks, windows and positions are worked
out from the request's own state, in one place, whatever the family's code does about them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


@dataclass(frozen=True)
class SlotShape:
    """What one slot holds per token: `heads` keys and values of `key` and `value` numbers."""

    heads: int
    key: int
    value: int
    window: int | None = None

    def size(self, capacity: int) -> int:
        """Entries in a slot of a request that may hold `capacity` tokens."""
        return capacity if self.window is None else min(capacity, self.window)

    def elements(self, capacity: int) -> int:
        """Numbers that one sequence's slot holds."""
        return self.heads * (self.key + self.value) * self.size(capacity)


@dataclass(frozen=True)
class Slot:
    """Keys [B, heads, size, key] and values [B, heads, size, value] of one attention."""

    keys: Tensor
    values: Tensor
    window: int | None = None

    @property
    def size(self) -> int:
        return self.keys.shape[2]

    @classmethod
    def empty(cls, shape: SlotShape, batch: int, capacity: int, like: Tensor) -> "Slot":
        size = shape.size(capacity)
        return cls(
            like.new_zeros(batch, shape.heads, size, shape.key),
            like.new_zeros(batch, shape.heads, size, shape.value),
            shape.window,
        )


@dataclass
class Pass:
    """One run of the model over `queries` new tokens a sequence, from column `start` on.

    `pads` [B]: columns of padding on the left of each sequence; `padded` whether there are any.
    A decode step keeps its column in the tensor `at` [1] alone (`start` None), so that the same
    compiled code serves every step. `storing`: keys and values are stored, and nothing attends.
    """

    pads: Tensor
    padded: bool
    queries: int
    start: int | None = None
    at: Tensor | None = None
    storing: bool = False
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _valid: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, size: int, past: int) -> Tensor:
        """Which keys each query of a prefill sees: bool [B, 1, queries, past + queries].

        Keys are the `past` columns before the pass and its own; `size` is how far back a query
        sees, itself included. A padding token sees itself, since a softmax over nothing is NaN.
        """
        key = (size, past)
        if key not in self._masks:
            assert self.start is not None
            device = self.pads.device
            query = torch.arange(self.start, self.start + self.queries, device=device)[:, None]
            keys = torch.arange(self.start - past, self.start + self.queries, device=device)
            seen = (keys <= query) & (keys > query - size)
            real = keys >= self.pads[:, None, None]
            self._masks[key] = ((seen & real) | (keys == query))[:, None]
        return self._masks[key]

    def valid(self, slot: Slot) -> Tensor:
        """Which entries of a slot a decode step sees, its own token's too: bool [B, 1, size].

        Entry e holds the latest column up to `at` that is e modulo the size. Slots of one window
        share their mask (known by the window, since a compiled step leaves sizes open).
        """
        if slot.window not in self._valid:
            assert self.at is not None
            entry = torch.arange(slot.size, device=self.pads.device)
            column = self.at - (self.at - entry) % slot.size
            self._valid[slot.window] = (column >= self.pads[:, None, None]) & (column >= 0)
        return self._valid[slot.window]


@dataclass(frozen=True)
class Entry:
    """A slot on its way through the modelling code, with the new keys and values [B, H, Q, D]."""

    slot: Slot
    run: Pass
    keys: Tensor
    values: Tensor


class SlotCache(Cache):
    """What transformers takes for its cache; lives for one pass."""

    def __init__(self, slots: Mapping[int, Any] | Sequence[Any], run: Pass) -> None:
        self.layers = []
        self.slots = slots
        self.run = run

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        entry = Entry(self.slots[layer_idx], self.run, key_states, value_states)
        return entry, entry

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.run.start or 0

    def __len__(self) -> int:
        return len(self.slots)
