"""What closed-form fits need to know of the states that they are made on."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Running first and second moments of inputs x [n, d] and targets y [n, m], in float64.

    Products are taken in bfloat16 where x comes in it: that rounds each to a part in 500, far below
    the ridge, in half the time. float16 would overflow, so all else is taken in float32.
    """

    count: int = 0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    xy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Count in rows of inputs and targets."""
        self.count += len(x)
        self.x = self.x + x.sum(0, dtype=torch.float64)
        self.y = self.y + y.sum(0, dtype=torch.float64)
        precision = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
        x, y = x.to(precision), y.to(precision)
        self.xx = self.xx + (x.T @ x).double()
        self.xy = self.xy + (x.T @ y).double()
