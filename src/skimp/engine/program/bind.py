"""A listing made to run: every operand an address, every operation a structure of program.h."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from skimp.engine.program import structs
from skimp.engine.program.capture import HIDDEN, POSITIONS, TOKENS
from skimp.engine.program.listing import (
    ARENA,
    DTYPES,
    INPUT,
    MAP_OPS,
    Listing,
    Operand,
    Operation,
)
from skimp.engine.program.used import Used, used_table
from skimp.engine.slots import Slot
from skimp.errors import RequestError
from skimp.kernels.native import MOST_ROWS

_TYPES = {number: dtype for dtype, number in DTYPES.items()}


@dataclass(frozen=True)
class Mark:
    """Where a step can be entered: `at`, its first operation; `hidden` [B, Q, d] is to be there."""

    at: int
    hidden: Tensor


class SlotTable:
    """The addresses of a request's slots by cache index; `largest`: of their sizes."""

    def __init__(self, slots: Mapping[int, Slot]) -> None:
        self.places = (structs.SlotPlace * (max(slots, default=0) + 1))()
        for index, slot in slots.items():
            self.places[index] = structs.SlotPlace(
                slot.keys.data_ptr(), slot.values.data_ptr(), slot.size
            )
        self.largest = max((slot.size for slot in slots.values()), default=0)
        self.smallest = min((slot.size for slot in slots.values()), default=0)


@dataclass(frozen=True)
class Bound:
    """What a step needs of a request: its slots, its `pads` [B], the first column `at` of the step,
    and the neurons in use by layer."""

    slots: SlotTable
    pads: Tensor
    at: int
    used: Mapping[int, Used]

    @cached_property
    def table(self) -> Any:
        """`used` as C reads it, made once though a step may be run in two pieces."""
        return used_table(self.used)


class Program:
    """A decode step that runs natively over the weights of one model.

    It holds scratch space of its own, so one step runs at a time; what belongs to a request is
    handed over at each step.
    """

    def __init__(
        self, listing: Listing, tensors: Mapping[str, Tensor], handle: ctypes.CDLL, threads: int
    ) -> None:
        self.batch, self.queries = listing.inputs[TOKENS][0]
        self._run = structs.run_function(handle)
        self._tensors = tensors  # their storage must outlive the addresses below
        self._threads = threads
        self._arena = torch.empty(listing.arena + 64, dtype=torch.uint8)
        self._inputs = {
            name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in listing.inputs.items()
        }
        self._kept: list[Any] = []
        self._marks: dict[int, Mark] = {}
        operations = []
        for operation in listing.operations:
            if operation.kind == "mark":
                (hidden,) = operation.operands
                assert hidden is not None
                place = operation.settings["place"]
                self._marks[place] = Mark(len(operations), self._view(hidden))
                continue
            kind, arguments = self._made(operation)
            self._kept.append(arguments)
            pointer = ctypes.cast(ctypes.pointer(arguments), ctypes.c_void_p)
            operations.append(structs.Operation(kind, pointer, *(operation.neurons or (-1, 0))))
        self._operations = (structs.Operation * len(operations))(*operations)
        self._logits = None if listing.logits is None else self._view(listing.logits)
        self._valid = torch.empty(0, dtype=torch.uint8)

    def step(self, bound: "Bound", tokens: Tensor) -> Tensor:
        """Logits [B, V] after `tokens` [B, Q]."""
        self._enter(bound, tokens)
        self._go(bound, 0, len(self._operations))
        return self._taken(self._logits)

    def walk(
        self, bound: "Bound", tokens: Tensor, hidden: Tensor | None, first: int, last: int | None
    ) -> Tensor:
        """The stretch from place `first` to `last`, or to the logits.

        `hidden` [B, Q, d] enters it, or at the first place the embedding of `tokens` [B, Q].
        Returns the hidden state [B, Q, d] at the last place, or the logits [B, V].
        """
        self._enter(bound, tokens)
        start = 0
        if hidden is not None:
            self._go(bound, 0, self._marks[0].at - 1)  # what every stretch may read: positions
            self._marks[first].hidden.copy_(hidden)
            start = self._marks[first].at
        self._go(bound, start, len(self._operations) if last is None else self._marks[last].at)
        return self._taken(self._logits if last is None else self._marks[last].hidden)

    def project(self, bound: "Bound", hidden: Tensor, first: int) -> None:
        """Store keys and values of `hidden` [B, Q, d] at every layer from `first` on."""
        self._enter(bound, self._inputs[TOKENS])
        places = sorted(self._marks)
        to = next((place for place in places if place >= first), None)
        if to is None:
            return
        self._inputs[HIDDEN].copy_(hidden)
        self._go(bound, 0, self._marks[places[0]].at - 1)
        self._go(bound, self._marks[to].at - 1, len(self._operations))

    def _enter(self, bound: "Bound", tokens: Tensor) -> None:
        self._inputs[TOKENS].copy_(tokens)
        columns = torch.arange(bound.at, bound.at + self.queries)
        torch.sub(columns, bound.pads[:, None], out=self._inputs[POSITIONS])
        room = self.batch * self.queries * bound.slots.largest
        if self._valid.numel() < room:
            self._valid = torch.empty(room, dtype=torch.uint8)

    def _go(self, bound: "Bound", first: int, last: int) -> None:
        """Run operations `first` to `last` (exclusive)."""
        context = structs.Context(
            bound.slots.places,
            bound.table,
            bound.pads.data_ptr(),
            self._valid.data_ptr(),
            bound.at,
            self.queries,
            self._threads,
            -1,
        )
        failed = self._run(self._operations, first, last, ctypes.byref(context))
        if failed == 1:
            raise RequestError("tokens: one is outside the model's vocabulary or context.")
        if failed:
            raise MemoryError("the decode step found no memory to work in")

    def _taken(self, held: Tensor | None) -> Tensor:
        """A copy of what the arena holds."""
        assert held is not None
        # Not torch's copy, whose threads would be in the way of the next step (engine/quiet.py).
        taken = torch.empty_like(held)
        ctypes.memmove(taken.data_ptr(), held.data_ptr(), taken.nbytes)
        return taken

    def _address(self, operand: Operand | None) -> int | None:
        if operand is None:
            return None
        if operand.base == ARENA:
            start = self._arena.data_ptr()
            return start + (-start) % 64 + operand.offset
        tensor = (
            self._inputs[operand.name] if operand.base == INPUT else self._tensors[operand.name]
        )
        return tensor.data_ptr() + operand.offset

    def _view(self, operand: Operand) -> Tensor:
        """An arena operand as a tensor."""
        start = (-self._arena.data_ptr()) % 64
        dtype = _TYPES[operand.dtype]
        size = dtype.itemsize
        whole = self._arena[start : start + (self._arena.numel() - start) // size * size]
        return whole.view(dtype).as_strided(operand.shape, operand.strides, operand.offset // size)

    def _operand(self, operand: Operand, strides: list[int]) -> structs.Operand:
        made = structs.Operand(self._address(operand), operand.dtype)
        made.stride[: len(strides)] = strides
        return made

    def _made(self, operation: Operation) -> tuple[int, Any]:
        maker: Callable[..., tuple[int, Any]] = getattr(self, f"_{operation.kind}")
        return maker(*operation.operands, **operation.settings)

    def _map(
        self,
        out: Operand,
        *inputs: Operand,
        op: str,
        shape: list[int],
        strides: list[list[int]],
        scalars: list[float],
    ) -> tuple[int, Any]:
        made = structs.Map(op=MAP_OPS.index(op), dims=len(shape), inputs=len(inputs))
        made.shape[: len(shape)] = shape
        made.out = self._operand(out, strides[0])
        for index, operand in enumerate(inputs):
            made.input[index] = self._operand(operand, strides[1 + index])
        made.scalar[:] = scalars
        return structs.MAP, made

    def _reduce(self, out: Operand, x: Operand, *, scale: float) -> tuple[int, Any]:
        made = structs.Reduce(dims=len(x.shape), scale=scale)
        made.shape[: len(x.shape)] = x.shape
        made.out = self._operand(out, list(out.strides))
        made.input = self._operand(x, list(x.strides))
        return structs.REDUCE, made

    def _layer_norm(
        self, out: Operand, x: Operand, weight: Operand | None, bias: Operand | None, *, eps: float
    ) -> tuple[int, Any]:
        width = x.shape[-1]
        made = structs.LayerNorm(
            *map(self._address, (x, weight, bias, out)), prod(x.shape) // width, width, x.dtype, eps
        )
        return structs.LAYER_NORM, made

    def _mask(self, h: Operand) -> tuple[int, Any]:
        return structs.MASK, structs.Mask(self._address(h), h.shape[0], h.dtype)

    def _gather(self, out: Operand, table: Operand, index: Operand) -> tuple[int, Any]:
        size = _TYPES[table.dtype].itemsize
        made = structs.Gather(
            *map(self._address, (table, index, out)),
            prod(index.shape),
            table.shape[0],
            table.strides[0] * size,
            table.shape[1] * size,
        )
        return structs.GATHER, made

    def _linear(self, x: Operand, *jobs: Operand | None) -> tuple[int, Any]:
        """`jobs`: out, weight and bias of each product with x."""
        made = structs.Linear(
            self._address(x), None, x.shape[0], x.shape[1], x.dtype, self._threads, len(jobs) // 3
        )
        for index in range(made.jobs):
            out, weight, bias = jobs[3 * index : 3 * index + 3]
            assert weight is not None
            height = weight.shape[0]
            made.job[index] = structs.Job(
                *map(self._address, (weight, bias, out)), height, weight.strides[0], height
            )
        return structs.LINEAR, made

    def _neurons(self, out: Operand, h: Operand, weight: Operand) -> tuple[int, Any]:
        height, width = weight.shape
        made = structs.Neurons(
            *map(self._address, (h, weight)),
            None,
            self._address(out),
            h.shape[0],
            height,
            width,
            weight.strides[0],
            height,
            h.dtype,
            self._threads,
        )
        return structs.NEURONS, made

    def _attend(
        self,
        out: Operand,
        q: Operand,
        k: Operand,
        v: Operand,
        *,
        slot: int,
        scale: float,
        softcap: float,
    ) -> tuple[int, Any]:
        batch, heads, queries, width = q.shape
        made = self._stored(k, v, slot)
        made.attended = structs.Attend(
            q=self._address(q),
            out=self._address(out),
            b=batch,
            hq=heads,
            hk=k.shape[1],
            q_count=queries,
            d=width,
            dv=v.shape[3],
            q_b=q.strides[0],
            q_h=q.strides[1],
            q_q=q.strides[2],
            scale=scale,
            softcap=softcap,
            dtype=q.dtype,
            threads=self._threads,
        )
        return structs.SLOT, made

    def _store(self, k: Operand, v: Operand, *, slot: int) -> tuple[int, Any]:
        return structs.STORE, self._stored(k, v, slot)

    def _stored(self, k: Operand, v: Operand, slot: int) -> structs.Slot:
        made = structs.Slot(slot)
        size = _TYPES[k.dtype].itemsize
        for name, fresh in (("stored_keys", k), ("stored_values", v)):
            batch, heads, queries, width = fresh.shape
            store = structs.Store(
                fresh=self._address(fresh),
                b=batch,
                h=heads,
                q=queries,
                bytes=width * size,
                fresh_b=fresh.strides[0] * size,
                fresh_h=fresh.strides[1] * size,
                fresh_q=fresh.strides[2] * size,
            )
            setattr(made, name, store)
        return made


def fits(rows: int) -> bool:
    """Whether the native products take so many rows: sequences times columns."""
    return rows <= MOST_ROWS
