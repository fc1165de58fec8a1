"""Attention over the engine's slots, as an attention function of transformers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from skimp import kernels
from skimp.engine.gates import Stored
from skimp.engine.slots import Entry, Pass, Slot

NAME = "skimp"

# What attention modules hand on that does not change the result: masks and positions come from the
# pass, dropout is zero outside training.
_HARMLESS = frozenset(
    ("dropout", "sliding_window", "position_ids", "cache_position", "use_cache", "is_causal")
)


class Unsupported(Exception):
    """An attention that the engine's slots do not compute; the message says what it wants."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Store the new keys and values and attend: query [B, H, Q, D] gives [B, Q, H, Dv].

    Raises:
        Unsupported: the keys come from elsewhere, or an option is one that this does not know.
    """
    if not isinstance(key, Entry) or key is not value:
        raise Unsupported("keys and values that do not come straight from the cache")
    for name, option in others.items():
        if name not in _HARMLESS and option is not None and option is not False:
            raise Unsupported(f"the attention option {name!r}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    options = (scale, softcap or 0.0, s_aux)
    run, slot = key.run, key.slot
    if not isinstance(slot, Slot):  # a stand-in of the engine's own, while it reads the model
        return slot.attend(query, key, *options), None
    if run.at is not None:
        return _decode(run, run.at, slot, query, key, *options), None
    return _prefill(run, slot, query, key, *options), None


AttentionInterface.register(NAME, attend)


def _decode(
    run: Pass,
    at: Tensor,
    slot: Slot,
    query: Tensor,
    entry: Entry,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    index = at % slot.size
    kernels.store(slot.keys, entry.keys, index)
    kernels.store(slot.values, entry.values, index)
    if run.storing:
        raise Stored
    valid = run.valid(slot)
    if query.is_cuda and not softcap and sinks is None:
        return _fused(query, slot.keys, slot.values, valid[:, None], scale)
    return kernels.attend(query, slot.keys, slot.values, valid, scale, softcap, sinks)


def _prefill(
    run: Pass,
    slot: Slot,
    query: Tensor,
    entry: Entry,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    assert run.start is not None
    past, end = run.start, run.start + run.queries
    if end <= slot.size:
        slot.keys[:, :, past:end] = entry.keys
        slot.values[:, :, past:end] = entry.values
        keys, values = slot.keys[:, :, :end], slot.values[:, :, :end]
    else:
        past = min(past, slot.size)
        keys, values = (
            torch.cat([_ordered(held, run.start, past), new], 2)
            for held, new in ((slot.keys, entry.keys), (slot.values, entry.values))
        )
        last = min(run.queries, slot.size)
        index = torch.arange(end - last, end, device=query.device) % slot.size
        slot.keys.index_copy_(2, index, entry.keys[:, :, -last:])
        slot.values.index_copy_(2, index, entry.values[:, :, -last:])
    causal = not (run.padded or past or run.queries > slot.size)
    mask = None if causal else run.mask(slot.size, past)
    if softcap or sinks is not None:
        mask = run.mask(slot.size, past) if mask is None else mask
        return _scores(query, keys, values, mask, scale, softcap, sinks)
    return _fused(query, keys, values, mask, scale, causal=causal and run.queries > 1)


def _fused(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool = False,
) -> Tensor:
    """torch's own attention, [B, Q, H, Dv]; `mask` is bool, None: all keys, or causal ones."""
    grouped = query.shape[1] != keys.shape[1]
    out = F.scaled_dot_product_attention(
        query, keys, values, mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def _ordered(held: Tensor, start: int, count: int) -> Tensor:
    """The last `count` columns before `start`, oldest first."""
    index = torch.arange(start - count, start, device=held.device) % held.shape[2]
    return held.index_select(2, index)


def _scores(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out, for what no fused kernel of torch computes; softmax in float32."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (held.repeat_interleave(groups, 1) for held in (keys, values))
    scores = (query @ keys.transpose(2, 3) * scale).float()
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        column = sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        shares = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        shares = scores.softmax(-1)
    return (shares.to(values.dtype) @ values).transpose(1, 2)
