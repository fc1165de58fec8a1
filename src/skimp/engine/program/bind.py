"""A listing made to run: every operand an address, every operation a structure of program.h."""

import ctypes
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from skimp.engine.program import structs
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


class Program:
    """A decode step that runs natively over the weights of one model.

    It holds scratch space of its own, so one step runs at a time; what belongs to a request is
    handed over at each step.
    """

    def __init__(
        self, listing: Listing, tensors: Mapping[str, Tensor], handle: ctypes.CDLL, threads: int
    ) -> None:
        self.batch = listing.batch
        self._run = structs.run_function(handle)
        self._tensors = tensors  # their storage must outlive the addresses below
        self._threads = threads
        self._arena = torch.empty(listing.arena + 64, dtype=torch.uint8)
        self._inputs = {
            name: torch.zeros(listing.batch, 1, dtype=torch.long)
            for name in ("tokens", "positions")
        }
        self._kept: list[Any] = []
        self._operations = (structs.Operation * len(listing.operations))()
        for index, operation in enumerate(listing.operations):
            kind, arguments = self._made(operation)
            self._kept.append(arguments)
            self._operations[index] = structs.Operation(
                kind,
                ctypes.cast(ctypes.pointer(arguments), ctypes.c_void_p),
                *(operation.neurons or (-1, 0)),
            )
        self._logits = self._view(listing.logits)
        self._valid = torch.empty(0, dtype=torch.uint8)

    def step(
        self,
        slots: Mapping[int, Slot],
        pads: Tensor,
        at: int,
        tokens: Tensor,
        used: Mapping[int, Used] | None = None,
    ) -> Tensor:
        """Logits [B, V] after `tokens` [B] at column `at`; `used`: neurons by layer."""
        self._inputs["tokens"][:, 0] = tokens
        self._inputs["positions"][:, 0] = at - pads
        table = slot_table(slots)
        room = self.batch * max((slot.size for slot in slots.values()), default=0)
        if self._valid.numel() < room:
            self._valid = torch.empty(room, dtype=torch.uint8)
        context = structs.Context(
            table,
            used_table(used or {}),
            pads.data_ptr(),
            self._valid.data_ptr(),
            at,
            self._threads,
            -1,
        )
        failed = self._run(self._operations, 0, len(self._operations), ctypes.byref(context))
        if failed == 1:
            raise RequestError("tokens: one is outside the model's vocabulary or context.")
        if failed:
            raise MemoryError("the decode step found no memory to work in")
        # Not torch's copy, whose threads would be in the way of the next step (engine/quiet.py).
        logits = torch.empty_like(self._logits)
        ctypes.memmove(logits.data_ptr(), self._logits.data_ptr(), logits.nbytes)
        return logits

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
        batch, heads, _, width = q.shape
        kv_heads, wide = k.shape[1], v.shape[3]
        size = _TYPES[q.dtype].itemsize
        made = structs.Slot(slot)
        for name, fresh in (("stored_keys", k), ("stored_values", v)):
            setattr(
                made,
                name,
                structs.Store(
                    fresh=self._address(fresh),
                    b=batch,
                    h=kv_heads,
                    q=1,
                    bytes=fresh.shape[3] * size,
                    fresh_b=fresh.strides[0] * size,
                    fresh_h=fresh.strides[1] * size,
                    fresh_q=fresh.strides[2] * size,
                ),
            )
        made.attended = structs.Attend(
            q=self._address(q),
            out=self._address(out),
            b=batch,
            hq=heads,
            hk=kv_heads,
            q_count=1,
            d=width,
            dv=wide,
            q_b=q.strides[0],
            q_h=q.strides[1],
            q_q=q.strides[2],
            scale=scale,
            softcap=softcap,
            dtype=q.dtype,
            threads=self._threads,
        )
        return structs.SLOT, made


def slot_table(slots: Mapping[int, Slot]) -> Any:
    """The slots' addresses by cache index."""
    table = (structs.SlotPlace * (max(slots, default=0) + 1))()
    for index, slot in slots.items():
        table[index] = structs.SlotPlace(slot.keys.data_ptr(), slot.values.data_ptr(), slot.size)
    return table


def fits(batch: int) -> bool:
    """Whether the native products take a batch of this size."""
    return batch <= MOST_ROWS
