"""How the feed-forward sublayers of a model are wired: which linear maps make neurons of what.

Neurons are what stands between a feed-forward's input maps and its output map: of a plain one
`z = act(W₁ x)`, of a gated one `z = act(W_g x) ⊙ (W_u x)`. The maps are found by their shapes and
then put to the test, since shapes cannot tell whether a neuron depends on its own rows alone, nor
which of two maps is the gate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from skimp.errors import PlanError
from skimp.models.anatomy import Anatomy
from skimp.models.carve import KEEP


@dataclass(frozen=True)
class FeedForward:
    """How an FF sublayer is wired. Paths are module paths from the model's root.

    `inputs` are linear maps hidden -> width: gate and up, or a single one; or, if `fused`, one map
    hidden -> 2·width whose rows are the gate's, then the up map's. `output` is the linear map
    width -> hidden, `width` the number of neurons F.
    """

    inputs: tuple[str, ...]
    output: str
    width: int
    fused: bool


def feed_forwards(model: nn.Module, anatomy: Anatomy) -> dict[int, FeedForward]:
    """The wiring of every FF that is still there, by its layer's index in the dense model.

    `anatomy` is that of `model` as it is now, dense or planned. A model on the meta device is read
    by its shapes alone. The model is left as it was.

    Raises:
        PlanError: a mixture of experts, or anything else but a plain or gated feed-forward.
    """
    found: dict[int, FeedForward] = {}
    tried: set[tuple[Any, ...]] = set()
    for position, layer in enumerate(anatomy.layers):
        if layer.ffn.state != KEEP:
            continue
        path = f"{anatomy.family.layers}.{position}"
        block = model.get_submodule(path)
        modules = [(name, block.get_submodule(name)) for name in anatomy.family.ffn.modules]
        try:
            wiring = _read(modules, path, anatomy.hidden_size)
            kind = _kind(modules)
            if kind not in tried:  # layers of one make are wired alike
                _try(model, [module for _, module in modules], wiring, anatomy.hidden_size)
                tried.add(kind)
        except _Unfit as error:
            raise PlanError(
                f"experts: the FF of layer {layer.source} is no plain or gated feed-forward "
                f"({error}); leave `experts` out of the plan."
            ) from None
        found[layer.source] = wiring
    return found


class _Unfit(Exception):
    """Why a sublayer is no feed-forward of the kind sought."""


def _read(modules: list[tuple[str, nn.Module]], path: str, hidden: int) -> FeedForward:
    maps: list[tuple[str, int, int]] = []
    for name, leaf in _weighted(modules):
        if any(weight.dim() > 2 for weight in leaf.parameters(recurse=False)):
            raise _Unfit(f"{name} is a mixture of experts")
        if not isinstance(leaf, (nn.Linear, Conv1D)):
            raise _Unfit(f"{name} has weights, but is no linear map")
        rows, columns = leaf.weight.shape
        # [out, in], but the other way round in a Conv1D.
        entries, exits = (rows, columns) if isinstance(leaf, Conv1D) else (columns, rows)
        maps.append((name, entries, exits))
    if not 2 <= len(maps) <= 3:
        raise _Unfit(f"it has {len(maps)} linear maps, not 2 or 3")
    *inputs, (output, width, out) = maps
    if out != hidden:
        raise _Unfit(f"{output} stands last, but gives {out} values, not the model's {hidden}")
    fused = len(inputs) == 1 and inputs[0][2] == 2 * width
    wanted = (hidden, 2 * width if fused else width)
    for name, *shape in inputs:
        if tuple(shape) != wanted:
            raise _Unfit(
                f"{name} maps {shape[0]} values to {shape[1]}, which does not fit {output} "
                f"from {width} to {out}"
            )
    names = tuple(f"{path}.{name}" for name, *_ in inputs)
    return FeedForward(names, f"{path}.{output}", width, fused)


def _weighted(modules: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """Modules with weights of their own, in the order of registration."""
    for name, module in modules:
        for below, leaf in module.named_modules(prefix=name):
            if next(leaf.parameters(recurse=False), None) is not None:
                yield below, leaf


def _kind(modules: list[tuple[str, nn.Module]]) -> tuple[Any, ...]:
    return tuple(
        (path, type(leaf))
        for name, module in modules
        for path, leaf in module.named_modules(prefix=name)
    )


@torch.no_grad()
def _try(model: nn.Module, branch: list[nn.Module], wiring: FeedForward, hidden: int) -> None:
    """Send made-up values through the branch in place of what the input maps would give.

    Without half of the neurons, the greatest by far, the others must come out as they did among
    them. Then the up map's values change sign: so must all neurons.
    """
    inputs: list[Any] = [model.get_submodule(path) for path in wiring.inputs]
    output: Any = model.get_submodule(wiring.output)
    weight = output.weight
    if weight.device.type == "meta":
        return
    gated = wiring.fused or len(inputs) == 2
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(wiring.width, generator=random)
    some = order[: (wiring.width + 1) // 2].sort().values
    given = torch.randn(2 if gated else 1, wiring.width, generator=random) * 4
    given[:, some] /= 4

    def neurons(values: Tensor) -> Tensor:
        rows = list((values.reshape(1, -1) if wiring.fused else values).to(weight))
        entry = torch.zeros(1, 1, hidden, dtype=weight.dtype, device=weight.device)
        found = _send(entry, branch, inputs, output, rows, wiring.width)
        if len(found) != 1 or found[0].numel() != values.shape[1]:
            raise _Unfit("its output map is not called once, with the neurons")
        return found[0].reshape(-1)

    every = neurons(given)
    # Last places may differ, where vector instructions do not come out even.
    slack = 4 * torch.finfo(weight.dtype).eps
    left = neurons(given[:, some])
    if not torch.allclose(left, every[some.to(every.device)], rtol=slack, atol=slack):
        raise _Unfit("a neuron depends on more than its own rows of the input maps")
    if gated and not torch.equal(neurons(given * torch.tensor([[1.0], [-1.0]])), -every):
        raise _Unfit("its neurons are not linear in what the last input map gives")


def _send(
    entry: Tensor,
    branch: list[nn.Module],
    inputs: list[nn.Module],
    output: nn.Module,
    rows: list[Tensor],
    width: int,
) -> list[Tensor]:
    """What the output map is given, call by call, when the input maps give `rows`."""
    found: list[Tensor] = []

    def give(row: Tensor) -> Any:
        return lambda _, __, old: row.expand(*old.shape[:-1], -1).clone()

    def see(_: nn.Module, args: tuple[Tensor, ...]) -> Any:
        found.append(args[0].detach().clone())
        # The map itself is as wide as it is, however many neurons there are.
        return (args[0].new_zeros(*args[0].shape[:-1], width),)

    handles = [m.register_forward_hook(give(row)) for m, row in zip(inputs, rows, strict=True)]
    handles.append(output.register_forward_pre_hook(see))
    try:
        value: Any = entry
        for module in branch:
            value = module(value)
            value = value[0] if isinstance(value, tuple) else value
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise _Unfit(f"no token can be sent through it: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    return found
