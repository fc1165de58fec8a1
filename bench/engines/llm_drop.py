"""The way of LLM-Drop (He et al. 2024): attention modules that are not there, in eager mode.

The dropped attention and the norm that fed it are gone from memory, nothing stands in their place,
and the kept attentions are numbered anew, so that the cache has no gaps. Written afresh for the
installed transformers; LLM-Drop itself pins an older one.
"""

from types import MethodType
from typing import Any

import torch
from bench.engines.base import Options
from bench.engines.eager import Eager, open_model, versions
from torch import nn

__all__ = ["load", "versions"]


def load(options: Options) -> Eager:
    """`options.argument`: the layers whose attention goes, as a comma-separated list."""
    model = open_model(options)
    drop_attention(model, [int(layer) for layer in options.argument.split(",")])
    return Eager(model)


def drop_attention(model: Any, layers: list[int]) -> None:
    """Take the attention out of `layers` of a Llama-like model, for good."""
    blocks: Any = model.model.layers
    for index in layers:
        del blocks[index].self_attn, blocks[index].input_layernorm
        blocks[index].forward = MethodType(_feed_forward_only, blocks[index])
    kept = [block for block in blocks if hasattr(block, "self_attn")]
    for number, block in enumerate(kept):
        block.self_attn.layer_idx = number


def _feed_forward_only(block: nn.Module, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
    """What is left of a decoder layer: hidden states [B, S, H] in and out."""
    parts: Any = block
    return hidden_states + parts.mlp(parts.post_attention_layernorm(hidden_states))
