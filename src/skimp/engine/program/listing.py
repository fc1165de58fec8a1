"""A decode step as plain data: operations on operands that name where their numbers stand.

Nothing in it is code or an address; :mod:`skimp.engine.program.bind` makes it run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

DIMS = 5  # as in program.h
MOST_JOBS = 4  # LINEAR_JOBS of abi.h
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int64: 2, torch.bool: 3}

ARENA, WEIGHT, INPUT = "arena", "weight", "input"

# In the order of program.h: of one input, then of two.
_UNARY = (
    "copy neg cos sin rsqrt sqrt silu gelu gelu_tanh relu sigmoid tanh exp square power clamp "
    "reciprocal abs fill"
)
_BINARY = "add sub mul div maximum minimum"
MAP_OPS = tuple(f"{_UNARY} {_BINARY}".split())


class NotLowered(Exception):
    """A step that holds something the program cannot do; the message says what."""


@dataclass(frozen=True)
class Operand:
    """Where a tensor's numbers stand: `offset` bytes into the arena, a weight or an input."""

    base: str
    name: str
    offset: int
    dtype: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One step: `kind` of program.h (linear: a call), its operands and its settings.

    `neurons`: the layer and the width of an FF whose neurons a request may thin, if the operation
    is on those.
    """

    kind: str
    operands: tuple[Operand | None, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    neurons: tuple[int, int] | None = None


@dataclass(frozen=True)
class Listing:
    """A whole decode step, with the size of the arena it works in.

    `inputs`: what changes from step to step, tokens [B, Q] among it. An operation "mark" does
    nothing: it says where the hidden state of a place stands, once it has come that far. `logits`:
    none, where the step only stores keys and values.
    """

    inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    arena: int
    operations: tuple[Operation, ...]
    logits: Operand | None
