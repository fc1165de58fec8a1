"""From a captured list of ATen operations to the listing that program.h runs.

A result in a storage that is already known is a view and costs nothing; any other is computed, and
gets a place in the arena for as long as someone reads it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from skimp.engine.program import siblings
from skimp.engine.program.arena import Arena
from skimp.engine.program.capture import (
    Call,
    Captured,
    storage_key,
    tensors,
)
from skimp.engine.program.listing import (
    ARENA,
    DIMS,
    DTYPES,
    INPUT,
    WEIGHT,
    Listing,
    NotLowered,
    Operand,
    Operation,
)


def lower(captured: Captured) -> Listing:
    """The listing of a captured decode step.

    Raises:
        NotLowered: it holds an operation, a type or a layout that the program does not know.
    """
    lowering = Lowering(captured)
    return lowering.run()


class Lowering:
    """One pass over a captured step."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.arena = Arena()
        self.operations: list[Operation] = []
        self._places: dict[int, tuple[str, str, int]] = {}  # storage -> base, name, offset
        self._thin: dict[int, tuple[int, int]] = {}  # storage -> layer and width of its neurons
        self._held: list[Tensor] = []  # so that no storage's key is given out twice
        for base, tensors_of in ((WEIGHT, captured.weights), (INPUT, captured.inputs)):
            for name, tensor in tensors_of.items():
                self._places[storage_key(tensor)] = (base, name, 0)

    def run(self) -> Listing:
        given = set(self._places)
        calls = siblings.together(self.captured.calls, given)
        last = {storage_key(t): i for i, call in enumerate(calls) for t in _touched(call)}
        wanted = self.captured.logits
        if wanted is not None:
            last[storage_key(wanted)] = len(calls)
        for index, call in enumerate(calls):
            self._lower(call)
            for key, tensor in {storage_key(t): t for t in _touched(call)}.items():
                base, _, offset = self._places.get(key, (None, "", 0))
                if base == ARENA and last[key] == index:
                    self.arena.give(offset, _bytes(tensor))
        logits = None if wanted is None else self.operand(self.contiguous(wanted)[0])
        inputs = {name: (tuple(t.shape), t.dtype) for name, t in self.captured.inputs.items()}
        return Listing(inputs, self.arena.size, tuple(siblings.merged(self.operations)), logits)

    def _lower(self, call: Call) -> None:
        from skimp.engine.program.operations import LOWERED

        made = tensors(call.result)
        written = call.target._schema.is_mutable
        if not written and made and self._known(made[0]):
            return  # a view
        handler: Callable[..., None] | None = None if written else LOWERED.get(call.target)
        if handler is None:
            raise NotLowered(f"the operation {call.target}")
        if made:
            self.place(made[0])
        handler(self, call.result, *call.args, **call.kwargs)

    def _known(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._places

    def place(self, tensor: Tensor) -> None:
        """Give a new tensor its place in the arena."""
        self._held.append(tensor)
        self._places[storage_key(tensor)] = (ARENA, "", self.arena.take(_bytes(tensor)))

    def scratch(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor that only the operations emitted next may use."""
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        self.place(tensor)
        return tensor

    def drop(self, tensor: Tensor) -> None:
        """Give a scratch tensor's place back."""
        self.arena.give(self._places[storage_key(tensor)][2], _bytes(tensor))

    def operand(self, tensor: Tensor) -> Operand:
        if tensor.dtype not in DTYPES:
            raise NotLowered(f"numbers of type {tensor.dtype}")
        if not self._known(tensor):
            raise NotLowered("a tensor made while the step was read")
        base, name, offset = self._places[storage_key(tensor)]
        return Operand(
            base,
            name,
            offset + int(tensor.storage_offset()) * tensor.element_size(),
            DTYPES[tensor.dtype],
            tuple(tensor.shape),
            tuple(tensor.stride()),
        )

    def thin(self, tensor: Tensor, layer: int, width: int) -> None:
        """Note that a tensor holds the neurons of an FF, of which a request may keep some."""
        self._thin[storage_key(tensor)] = (layer, width)

    def emit(
        self,
        kind: str,
        *read: Tensor | None,
        neurons: tuple[int, int] | None = None,
        **settings: Any,
    ) -> None:
        if neurons is None and any(storage_key(t) in self._thin for t in read if t is not None):
            raise NotLowered(f"{kind} of neurons of which a plan keeps some")
        operands = tuple(None if t is None else self.operand(t) for t in read)
        self.operations.append(Operation(kind, operands, settings, neurons))

    def map(self, op: str, out: Tensor, *read: Tensor, scalars: tuple[float, ...] = ()) -> None:
        """Emit out = op(tensors...), which are broadcast to its shape."""
        inputs = [tensor.expand(out.shape) for tensor in read]
        shape, strides = collapse(tuple(out.shape), [t.stride() for t in (out, *inputs)])
        if len(shape) > DIMS:
            raise NotLowered(f"a layout of {len(shape)} dimensions")
        neurons = self._neurons_of(read)
        if neurons is not None:
            # Only numbers in a row can be fewer of them; and those with nothing else between them.
            if len(shape) > 1 or any(steps != [1] for steps in strides):
                raise NotLowered(f"{op} on neurons that do not lie in a row")
            self.thin(out, *neurons)
        self.emit(
            "map",
            out,
            *inputs,
            neurons=neurons,
            op=op,
            shape=shape,
            strides=strides,
            scalars=[*scalars, 0.0, 0.0][:2],
        )

    def _neurons_of(self, read: Sequence[Tensor]) -> tuple[int, int] | None:
        """The FF whose neurons all of these tensors hold; None if none does."""
        found = {self._thin.get(storage_key(tensor)) for tensor in read}
        if len(found) > 1:
            raise NotLowered("neurons of which a plan keeps some, with something else")
        return found.pop() if found else None

    def contiguous(self, tensor: Tensor) -> tuple[Tensor, bool]:
        """The tensor, or a contiguous scratch copy and True."""
        if tensor.is_contiguous():
            return tensor, False
        copy = self.scratch(tuple(tensor.shape), tensor.dtype)
        self.map("copy", copy, tensor)
        return copy, True


def collapse(
    shape: tuple[int, ...], strides: list[tuple[int, ...]]
) -> tuple[list[int], list[list[int]]]:
    """The fewest dimensions that walk all tensors in the same order.

    Two neighbouring dimensions are one where every tensor's outer stride is its inner stride times
    the inner size.
    """
    dims: list[tuple[int, list[int]]] = []
    for size, *steps in zip(shape, *strides, strict=True):
        if size == 1:
            continue
        if dims and all(
            outer == inner * size for outer, inner in zip(dims[-1][1], steps, strict=True)
        ):
            dims[-1] = (dims[-1][0] * size, steps)
        else:
            dims.append((size, steps))
    if not dims:
        return [1], [[0] for _ in strides]
    return [size for size, _ in dims], [[d[1][i] for d in dims] for i in range(len(strides))]


def _touched(call: Call) -> list[Tensor]:
    return tensors((call.args, call.kwargs, call.result))


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
