"""Which neurons of each FF a step uses; they are the request's, so they are handed over with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skimp.engine.program import structs


@dataclass(frozen=True)
class Used:
    """The neurons of an FF that a step uses: `rows` int32 [count], or all; `mask` bool [B, count],
    which of them each sequence keeps, or None for all; `sums` float32 [B, count]: where to add
    their statistic, or None."""

    count: int
    rows: Tensor | None = None
    mask: Tensor | None = None
    sums: Tensor | None = None


def used_table(used: Mapping[int, Used]) -> Any:
    """Addresses by layer; None if there are none."""
    if not used:
        return None
    table = (structs.NeuronsUsed * (max(used) + 1))()
    for layer, neurons in used.items():
        parts = (neurons.rows, neurons.mask, neurons.sums)
        places = (None if part is None else part.data_ptr() for part in parts)
        table[layer] = structs.NeuronsUsed(*places, neurons.count)
    return table
