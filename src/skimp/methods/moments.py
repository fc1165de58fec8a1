"""What closed-form fits need to know of the states that they are made on."""

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 192  # columns of a Gram matrix that are multiplied at once


@dataclass
class Moments:
    """Running first and second moments of inputs x [n, d] and targets y [n, m], in float64.

    Products are taken in float32 even of bfloat16 states. A product in bfloat16 rounds every entry
    to a part in 500 of itself; as states have large means and few strong directions, that is more
    than a ridge adds in the weak ones, and the rounded matrix is not even positive: a fit can then
    be as large as one likes (docs/log.md).
    """

    count: int = 0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    xy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count in rows of inputs and targets."""
        x, y = x.float(), y.float()
        self.count += len(x)
        self.x = _added(self.x, x.sum(0, dtype=torch.float64))
        self.y = _added(self.y, y.sum(0, dtype=torch.float64))
        self.xx = _added(self.xx, _gram(x))
        self.xy = _added(self.xy, x.T @ y)


def _added(total: Tensor | float, more: Tensor) -> Tensor:
    """The sum in float64, in place: new pages for it would take as long as a tenth of a product."""
    return total.add_(more) if isinstance(total, Tensor) else more.double() + total


def _gram(x: Tensor) -> Tensor:
    """xᵀx [d, d]; only one of each two mirrored blocks is multiplied."""
    size = x.shape[1]
    found = x.new_empty(size, size)
    for start in range(0, size, _BLOCK):
        part = slice(start, start + _BLOCK)
        block = x[:, part].T @ x[:, start:]
        found[part, start:] = block
        found[start:, part] = block.T
    return found
