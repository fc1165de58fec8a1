"""Asking a model for the logits of some positions alone: the head is much of a small model."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def last_only(model: nn.Module, queries: int, device: torch.device) -> dict[str, Any]:
    """What asks a model for the logits of the last of `queries` positions only, if it can be asked.

    0 queries: of however many there are. Of several positions it is asked by index: the slice that
    a count stands for is not contiguous, and torch then multiplies by a copy of the whole head for
    each text of a batch.
    """
    if not keeps_logits(model):
        return {}
    return {"logits_to_keep": 1 if queries == 1 else torch.tensor([queries - 1], device=device)}


def logits_at(model: nn.Module, ids: Tensor, positions: range) -> Tensor:
    """Logits [B, positions, V] of texts [B, S] there; the others are not computed if the model can
    be asked."""
    runner: Any = model
    at = torch.tensor(positions, device=ids.device)
    if keeps_logits(model):
        return runner(input_ids=ids, use_cache=False, logits_to_keep=at).logits
    return runner(input_ids=ids, use_cache=False).logits[:, at]


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model can be asked for the logits of some positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
