"""What early exits must give, by the dense model's own code with hooks: no cache, no engine."""

from typing import Any

import torch
from tests.contract.runs import Batch
from tests.families import Sample
from torch import Tensor, nn

from skimp.models.anatomy import Anatomy


@torch.no_grad()
def left(
    sample: Sample, model: Any, batch: Batch, depths: Tensor, *, propagate: bool = False
) -> Tensor:
    """Logits [B, T, V] of a model whose tokens leave after `depths` [B, T] layers.

    Later tokens see the dense model's keys and values, or with `propagate` those of the state that
    left, since that is what enters every layer behind.
    """
    blocks = sample.blocks(model)
    states: list[Tensor] = []

    def behind(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        at = len(states)
        bare = output[0] if isinstance(output, tuple) else output
        if propagate and states:
            bare = torch.where((depths <= at)[..., None], states[-1], bare)
        states.append(bare.clone())
        return (bare, *output[1:]) if isinstance(output, tuple) else bare

    def end(module: nn.Module, args: tuple[Any, ...]) -> Any:
        chosen = torch.stack(states).gather(
            0, (depths - 1)[None, :, :, None].expand(1, *states[0].shape)
        )
        return (chosen[0], *args[1:])

    norm = model.get_submodule(Anatomy.of(model).family.final_norm)
    handles = [block.register_forward_hook(behind) for block in blocks]
    handles.append(norm.register_forward_pre_hook(end))
    try:
        return model(**batch.part(0, batch.length), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
