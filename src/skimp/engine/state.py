"""What one request carries: its cache and how far it has come. Nothing of it lives in the model."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class State:
    """A batch of sequences that are generated together.

    `cache`: the runner's own store of keys and values. `pads` [B]: columns of padding on the left.
    `length`: columns so far, padding included. `capacity`: columns there is room for. `experts`:
    what its prompts showed of the neurons (engine/experts.py), where the plan keeps some of them.
    `exits`: what its last tokens have yet to be run through (engine/exits.py), where they may leave
    early. `idle` [B]: the sequences that have ended, which nobody listens to. `table`: the
    addresses of the cache, once native steps have asked for them. `base`: columns that are padding
    to every sequence, so that later ones may stand in their places (engine/batching.py).
    """

    cache: Any
    pads: Tensor
    padded: bool
    capacity: int
    length: int = 0
    experts: Any = None
    exits: Any = None
    idle: Tensor | None = None
    table: Any = None
    base: int = 0

    @property
    def batch(self) -> int:
        return len(self.pads)

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.capacity - self.held

    @property
    def held(self) -> int:
        """Columns from the first on that is a token of some sequence."""
        return self.length - self.base

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence so far [B], without padding."""
        return self.length - self.pads
