"""Products of one input, brought together: they then are one call, which threads share better."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from skimp.engine.program.capture import Call, storage_key
from skimp.engine.program.listing import MOST_JOBS, Operation

_PRODUCTS = {  # where the input is
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.skimp_program.neurons_in.default: 0,
}


def together(calls: Sequence[Call], given: Collection[int]) -> list[Call]:
    """The calls in another order: a product comes right after the first one of the same input.

    That is sound where all else that it reads is `given` (storages of weights), for a captured step
    writes nothing twice.
    """
    groups: dict[Any, list[Call]] = {}
    order: list[list[Call]] = []
    for call in calls:
        source = _source(call, given)
        if source is None:
            order.append([call])
        elif source in groups:
            groups[source].append(call)
        else:
            groups[source] = [call]
            order.append(groups[source])
    return [call for group in order for call in group]


def _source(call: Call, given: Collection[int]) -> Any:
    """What identifies the input of a product with weights; None for any other call."""
    if call.target not in _PRODUCTS or call.kwargs:
        return None
    place = _PRODUCTS[call.target]
    others = [t for i, t in enumerate(call.args) if i != place and isinstance(t, Tensor)]
    if any(storage_key(other) not in given for other in others):
        return None
    x = call.args[place]
    return call.target, storage_key(x), x.storage_offset(), tuple(x.shape), x.stride(), x.dtype


def merged(operations: Sequence[Operation]) -> list[Operation]:
    """The operations, neighbouring "linear" ones of the same input as one with several jobs."""
    made: list[Operation] = []
    for operation in operations:
        before = made[-1] if made else None
        if before is not None and _joins(before, operation):
            operands = before.operands + operation.operands[1:]
            made[-1] = Operation("linear", operands, neurons=before.neurons)
        else:
            made.append(operation)
    return made


def _joins(before: Operation, operation: Operation) -> bool:
    same = (
        before.kind == operation.kind == "linear"
        and before.operands[0] == operation.operands[0]
        and before.neurons == operation.neurons
    )
    return same and len(before.operands) + len(operation.operands[1:]) <= 1 + 3 * MOST_JOBS
