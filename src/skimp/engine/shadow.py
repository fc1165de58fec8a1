"""A second tree of modules over the same weights, so that a plan never touches the caller's model.

What a plan leaves out is gone from the shadow; its memory is free once the caller lets go of the
dense model.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from skimp.engine import attention

_WARNING = "warn_if_padding_and_no_attention_mask"


def _silent(*args: Any) -> None:
    """The engine knows its padding."""


def shadow(model: nn.Module, tensor: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """A copy of `model` in eval mode whose weights and buffers are `tensor(those of the model)`."""
    memo: dict[int, Any] = {}
    for weight in model.parameters():
        taken = tensor(weight)
        memo[id(weight)] = nn.Parameter(taken, False) if taken is not weight else weight
    for buffer in model.buffers():
        memo[id(buffer)] = tensor(buffer)
    return copy.deepcopy(model, memo).eval()


def on_meta(model: nn.Module) -> Any:
    """A copy without storage: it computes shapes only."""
    return shadow(model, lambda tensor: tensor.detach().to("meta"))


def attention_names(model: nn.Module) -> list[tuple[Any, str | None]]:
    """Every config that names an attention function, with the name."""
    configs: dict[int, Any] = {
        id(config): config
        for module in model.modules()
        if hasattr(config := getattr(module, "config", None), "_attn_implementation")
    }
    return [(config, config._attn_implementation) for config in configs.values()]


def use_slots(model: nn.Module) -> None:
    """Make a shadow's attention go through the engine's slots."""
    restore([(config, attention.NAME) for config, _ in attention_names(model)])
    for module in model.modules():
        if hasattr(module, _WARNING):  # it reads the tokens, at every step, to say nothing of use
            setattr(module, _WARNING, _silent)


def restore(names: list[tuple[Any, str | None]]) -> None:
    """Give configs the attention functions of `attention_names`."""
    for config, name in names:
        config._attn_implementation_internal = name
