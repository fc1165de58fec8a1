"""What a prompt says about the neurons of an FF: GRIFFIN's statistic (Dong et al., 2024).

With z_t the neurons' values at token t, `s_j = sqrt(Σ_t (z_tj / ‖z_t‖)²)`. The sums under the root
are what is kept, since they add up over chunks of a prompt and over the answer's tokens. Everything
is float32, whatever the model computes in.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_SMALL = 1e-25  # a sum of squares from here on has lost nothing that counts
# Values taken at once: float32 copies of more would come from fresh pages each time, and getting
# those costs ten times the arithmetic (docs/log.md).
_AT_ONCE = 2**19


def squares(z: Tensor, real: Tensor | None = None) -> Tensor:
    """Σ_t (z_tj / ‖z_t‖)² as float32 [B, F], of neurons `z` [B, S, F] of any float dtype.

    `real` [B, S] (bool) says which tokens count; None: all. Tokens whose neurons are all zero, or
    not all finite, add nothing either. The sums of a sequence's chunks add up to its own.
    """
    sums = torch.zeros(z.shape[0], z.shape[2], device=z.device)
    for part, counted in _parts(z, real):
        sums += _squares(part, counted)
    return sums


def _parts(z: Tensor, real: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    tokens = max(1, _AT_ONCE // max(1, z.shape[0] * z.shape[2]))
    for start in range(0, z.shape[1], tokens):
        part = slice(start, start + tokens)
        yield z[:, part], None if real is None else real[:, part]


def _squares(z: Tensor, real: Tensor | None) -> Tensor:
    values = z.float()
    if real is not None:
        values = values.masked_fill(~real.unsqueeze(-1), 0)
    squared = values * values
    norms = squared.sum(-1)
    plain = (norms > _SMALL) & norms.isfinite()
    if z.device.type == "cpu" and bool((plain if real is None else plain | ~real).all()):
        weights = torch.where(plain, norms.reciprocal(), 0)
        return torch.einsum("bs,bsf->bf", weights, squared)
    # Scaled by the largest first: squares of float32 overflow, or vanish, long before values do.
    largest = torch.linalg.vector_norm(values, ord=torch.inf, dim=-1)
    counts = (largest > 0) & largest.isfinite()
    if real is not None:
        counts &= real
    scaled = values / largest.unsqueeze(-1)
    scaled = scaled.masked_fill_(~counts.unsqueeze(-1), 0).square_()
    # At least 1 for a token that counts, whose largest value is 1 now.
    weights = 1 / scaled.sum(-1).clamp(min=1)
    return torch.einsum("bs,bsf->bf", weights, scaled)


def totals(z: Tensor, real: Tensor | None = None) -> Tensor:
    """Σ_t z_tj as float32 [B, F], of neurons `z` [B, S, F]; `real` [B, S] says which tokens count.

    Values that are not finite add nothing.
    """
    sums = torch.zeros(z.shape[0], z.shape[2], device=z.device)
    for part, counted in _parts(z, real):
        values = part.float().nan_to_num(0, 0, 0)
        sums += (values if counted is None else values * counted.unsqueeze(-1)).sum(1)
    return sums


def score(sums: Tensor) -> Tensor:
    """The statistic s of the paper, float32, from the sums of `squares`; same shape."""
    return sums.float().sqrt()


def shared(sums: Tensor, counts: Tensor) -> Tensor:
    """One statistic [1, F] for a batch: Σ_i s_i / sqrt(S_i).

    `sums` [B, F] and the tokens `counts` [B] they were taken over. A long prompt weighs no more
    than a short one; a sequence without tokens adds nothing.
    """
    lengths = counts.float().unsqueeze(-1)
    parts = torch.where(lengths > 0, score(sums) / lengths.clamp(min=1).sqrt(), 0)
    return parts.sum(0, keepdim=True)
