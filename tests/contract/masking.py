"""What leaving out should compute, done to the dense model by hooks alone.

Every branch still runs; only what it contributes to the residual stream is overwritten. Nothing of
skimp's surgery is used here, so that the two can disagree.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from tests.families import Sample, Site
from torch import Tensor, nn

from skimp.plan import Plan

# Names of the linear map that ends a branch; its place among the others differs between families.
LAST_MAPS = {"o_proj", "out_proj", "c_proj", "dense", "down_proj", "dense_4h_to_h", "fc2"}


@contextmanager
def masked(sample: Sample, model: nn.Module, plan: Plan) -> Iterator[None]:
    """Overwrite, while the context lasts, the contributions that a `drop` section leaves out."""
    section = plan.sections["drop"]
    handles = []
    for kind, site in (("attention", sample.attention), ("ffn", sample.ffn)):
        for layer in {*section.get(kind, ()), *section.get("layers", ())}:
            prefix = f"drop.{kind}.{layer}."
            values = {k.removeprefix(prefix): v for k, v in plan.values.items() if prefix in k}
            handles += _overwrite(sample.blocks(model)[layer], site, values)
        handles += _corrected(sample, model, kind, site, plan.values)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _overwrite(block: nn.Module, site: Site, values: Mapping[str, Tensor]) -> list[Any]:
    entered: list[Tensor] = []

    def enter(_: nn.Module, args: tuple, kwargs: dict) -> None:
        entered[:] = [kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]]

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        instead = torch.zeros_like(value)
        if "mean" in values:
            instead += values["mean"]
        if "up" in values:
            hidden = entered[0].reshape(value.shape)
            if "down" in values:
                hidden = hidden @ values["down"].T
            instead += hidden @ values["up"].T + values["bias"]
        return (instead, *output[1:]) if isinstance(output, tuple) else instead

    return [
        block.get_submodule(site.enter).register_forward_pre_hook(enter, with_kwargs=True),
        block.get_submodule(site.leave).register_forward_hook(leave),
    ]


def _corrected(
    sample: Sample, model: nn.Module, kind: str, site: Site, values: Mapping[str, Tensor]
) -> list[Any]:
    """Hooks that add each repair to what its branch's last linear map returns."""
    handles = []
    for layer, block in enumerate(sample.blocks(model)):
        prefix = f"drop.{kind}.{layer}.repair"
        if prefix in values:
            change = values[prefix].float()
        elif f"{prefix}_up" in values:
            change = values[f"{prefix}_up"] @ values[f"{prefix}_down"]
        else:
            continue
        branch = block.get_submodule(site.leave).named_modules(prefix=site.leave)
        (last,) = (module for name, module in branch if name.rpartition(".")[2] in LAST_MAPS)

        def add(_: nn.Module, args: tuple, output: Tensor, change: Tensor = change) -> Tensor:
            return output + args[0] @ change.T

        handles.append(last.register_forward_hook(add))
    return handles


def _left_out(plan: Plan) -> Iterator[tuple[str, int]]:
    section = plan.sections["drop"]
    for kind in ("attention", "ffn"):
        for layer in {*section.get(kind, ()), *section.get("layers", ())}:
            yield kind, layer


def branches_gone(sample: Sample, model: nn.Module, plan: Plan) -> Iterator[ref[Any]]:
    """Weak references to all modules of the branches that a `drop` section leaves out."""
    for kind, index in _left_out(plan):
        site = sample.attention if kind == "attention" else sample.ffn
        for path in {site.enter, site.leave}:
            branch = sample.blocks(model)[index].get_submodule(path)
            yield from (ref(module) for module in branch.modules())


def branches_saved(
    sample: Sample,
    model: nn.Module,
    plan: Plan,
    branches: Mapping[tuple[str, int], int],
    tokens: int,
) -> int:
    """FLOPs of the branches that a `drop` section leaves out, less those of its fills."""
    del sample, model
    # A repair is merged into weights that are there anyway.
    maps = [value for name, value in plan.values.items() if "repair" not in name]
    fills = sum(2 * value.numel() for value in maps if value.dim() == 2)
    return sum(branches[place] for place in _left_out(plan)) - fills * tokens
