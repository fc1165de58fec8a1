"""The closed forms behind fills and repairs: means, ridge regression, reduced rank.

Reduced-rank regression as in Izenman (1975), with a ridge as in Mukherjee and Zhu (2011):
W = (Cxx + lambda I)^-1 Cxy, projected on the leading principal directions of its fitted values.
"""

import torch
from torch import Tensor

from skimp.methods.drop.section import FillKind
from skimp.methods.moments import Moments

# Shares of the mean diagonal of Cxx, found on held-out text of other kinds (docs/log.md).
FILL_RIDGE = 1e-2
REPAIR_RIDGE = 1e-1
Values = dict[str, Tensor]


def solve_fill(moments: Moments, fill: FillKind) -> Values:
    """The fitted tensors of one fill: `mean` [d], or `down` [r, d], `up` [d, r] and `bias` [d]."""
    if fill.name == "zero":
        return {}
    mean_x = torch.as_tensor(moments.x / moments.count)
    mean_y = torch.as_tensor(moments.y / moments.count)
    if fill.name == "mean":
        return {"mean": mean_y.float()}
    cxx = moments.xx / moments.count - mean_x.outer(mean_x)
    cxy = moments.xy / moments.count - mean_x.outer(mean_y)
    if fill.rank is None:
        full = ridge_regression(cxx, cxy, FILL_RIDGE)
        return {"up": full.float(), "bias": (mean_y - full @ mean_x).float()}
    down, up = reduced_rank_ridge(cxx, cxy, FILL_RIDGE, fill.rank)
    bias = (mean_y - up @ (down @ mean_x)).float()
    return {"down": down.float(), "up": up.float(), "bias": bias}


def solve_repair(moments: Moments, rank: int | None) -> Values:
    """What to add to an output projection [d, n]: `repair`, or `repair_up` and `repair_down`.

    x is what enters the projection, y what its output lacks; there is no intercept, since most
    projections have no bias.
    """
    cxx = torch.as_tensor(moments.xx / moments.count)
    cxy = torch.as_tensor(moments.xy / moments.count)
    if rank is None:
        # Half precision is plenty for a correction, and these are as large as the weights.
        return {"repair": ridge_regression(cxx, cxy, REPAIR_RIDGE).to(torch.bfloat16)}
    down, up = reduced_rank_ridge(cxx, cxy, REPAIR_RIDGE, rank)
    return {"repair_down": down.float(), "repair_up": up.float()}


def ridge_regression(cxx: Tensor, cxy: Tensor, ridge: float) -> Tensor:
    """The map [m, n] from x [n] to y [m] of least squared error plus ridge.

    Args:
        cxx: second moments of x [n, n], float64.
        cxy: of x with y [n, m], float64.
        ridge: as a share of the mean diagonal of `cxx`.
    """
    return torch.linalg.solve(_damped(cxx, ridge), cxy).T.contiguous()


def reduced_rank_ridge(cxx: Tensor, cxy: Tensor, ridge: float, rank: int) -> tuple[Tensor, Tensor]:
    """Factors `down` [r, n] and `up` [m, r] of the best map of rank r, or m if that is less.

    The other arguments are those of :func:`ridge_regression`.
    """
    full = ridge_regression(cxx, cxy, ridge)
    # Eigenvectors come in ascending order, so the last are the directions that matter.
    explained = full @ _damped(cxx, ridge) @ full.T
    directions = torch.linalg.eigh(explained)[1][:, -min(rank, len(full)) :]
    return (directions.T @ full).contiguous(), directions.contiguous()


def _damped(cxx: Tensor, ridge: float) -> Tensor:
    damping = ridge * cxx.diagonal().mean().clamp_min(1e-12)
    return cxx + damping * torch.eye(len(cxx), dtype=cxx.dtype, device=cxx.device)
