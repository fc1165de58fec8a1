"""What every kernel computes, in plain torch: for other devices, other dtypes and large inputs.

The native kernels and these give the same numbers within rounding: sums are taken in float32, and
a result is rounded once, when it is done.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """``x [..., K] · weight[rows] [R, K]ᵀ (+ bias[rows])``; `rows` None: all of them."""
    if rows is not None:
        weight = weight.index_select(0, rows)
        bias = None if bias is None else bias.index_select(0, rows)
    return functional.linear(x, weight, bias)


def neurons(h: Tensor, weight_t: Tensor, rows: Tensor | None = None) -> Tensor:
    """``h [..., R] · weight_t[rows] [R, N]``; `rows` None: all of them."""
    return h @ (weight_t if rows is None else weight_t.index_select(0, rows))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    scale: float,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of new queries over a cache, softmax in float32.

    An entry that no query of its sequence may see counts as absent, whatever is stored there.

    Args:
        q: [B, Hq, Q, D]; Hq is a multiple of Hk, and every Hq / Hk queries share a key.
        k: [B, Hk, S, D].
        v: [B, Hk, S, Dv].
        valid: bool [B, Q, S], which entries each query sees.
        scale: multiplies the scores.
        softcap: scores become ``cap · tanh(score / cap)``; 0 for none.
        sinks: [Hq] a logit a head, which takes its share of the softmax and gives no value.

    Returns:
        [B, Q, Hq, Dv]; zeros for a query that sees nothing.
    """
    batch, heads, queries, _ = q.shape
    grouped = q.float().reshape(batch, k.shape[1], -1, queries, q.shape[-1])
    seen = valid.any(1)[:, None, :, None]
    keys, values = (torch.where(seen, part.float(), 0.0).unsqueeze(2) for part in (k, v))
    scores = (grouped @ keys.transpose(-1, -2)).view(batch, heads, queries, -1) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~valid[:, None], float("-inf"))
    if sinks is not None:
        column = sinks.float().view(1, -1, 1, 1).expand(batch, -1, queries, 1)
        scores = torch.cat([scores, column], dim=-1)
    shares = torch.softmax(scores, dim=-1)[..., : k.shape[2]]
    shares = shares.masked_fill(~valid.any(-1)[:, None, :, None], 0.0)
    out = shares.view(batch, k.shape[1], -1, queries, k.shape[2]) @ values
    return out.view(batch, heads, queries, -1).transpose(1, 2).to(q.dtype).contiguous()


def store(cache: Tensor, new: Tensor, index: Tensor) -> None:
    """Write ``new [B, H, Q, D]`` into ``cache [B, H, S, D]`` at the entries ``index [Q]``."""
    cache.index_copy_(2, index, new)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, round_first: bool = True
) -> Tensor:
    """``x / rms(x) · (weight + offset)`` over the last dimension, the mean square in float32.

    `round_first`: what is normalised is rounded to the dtype of `x` before it is multiplied (as
    in Llama); else the product is taken in float32 (as in Gemma).
    """
    wide = x.float()
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if round_first:
        return normal.to(x.dtype) * (weight + offset if offset else weight)
    return (normal * (weight.float() + offset)).to(x.dtype)
