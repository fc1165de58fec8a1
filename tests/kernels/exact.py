"""What a kernel may differ by from the exact result: its sums' rounding, and one rounding more."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers that `dtype` holds exactly."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_close(got: Tensor, exact: Tensor, size: Tensor) -> None:
    """`got` is the exact float64 result but for float32 sums and its rounding to its dtype.

    Args:
        got: a kernel's result.
        exact: the same in float64, from the same inputs.
        size: the result that the inputs' absolute values give. Rounding errors of a sum are
            proportional to it, however much of the sum cancels.
    """
    assert got.shape == exact.shape
    sums = 1e-6 * size.double() + torch.finfo(torch.float32).tiny
    if got.dtype is torch.bfloat16:
        nearest = exact.bfloat16().double()
        _, exponent = torch.frexp(nearest)
        unit = torch.where(nearest == 0, 0.0, 2.0 ** (exponent.double() - 8))  # 8 bits are held
        allowed = unit + sums
        error = (got.double() - nearest).abs()
    else:
        allowed = sums + torch.finfo(got.dtype).eps * exact.abs()
        error = (got.double() - exact).abs()
    worst = (error - allowed).max().item() if got.numel() else 0.0
    assert worst <= 0, f"off by {error.max().item():.3g}, {worst:.3g} more than rounding explains"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``x · weightᵀ + bias`` in float64, and its size for :func:`assert_close`."""
    exact, size = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    return exact, size
