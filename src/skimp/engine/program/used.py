"""Which neurons of each FF a step uses; they are the request's, so they are handed over with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skimp.engine.program import structs


@dataclass(frozen=True)
class Used:
    """The neurons of an FF that a step uses: `rows` int32 [count]; `mask` bool [B, count], which of
    them each sequence keeps, or None for all; `fill` [B, d], contiguous and of the model's type:
    what the output gains, or None. `order` int32 [count]: a permutation that puts rows together
    which the same sequences keep, or None."""

    rows: Tensor
    mask: Tensor | None = None
    fill: Tensor | None = None
    order: Tensor | None = None


def used_table(used: Mapping[int, Used]) -> Any:
    """Addresses by layer; None if there are none."""
    if not used:
        return None
    table = (structs.NeuronsUsed * (max(used) + 1))()
    for layer, neurons in used.items():
        mask = None if neurons.mask is None else neurons.mask.data_ptr()
        fill = None if neurons.fill is None else neurons.fill.data_ptr()
        order = None if neurons.order is None else neurons.order.data_ptr()
        rows = neurons.rows
        table[layer] = structs.NeuronsUsed(rows.data_ptr(), mask, fill, order, len(rows))
    return table
