"""What experts should compute, done to the dense model by hooks alone.

The statistic and the choice are worked out in float64 from what enters the FFs' last linear maps;
a token of the answer is then computed with its sequence's other neurons set to zero, all in one
pass. Experts that are the same for good are set to zero everywhere.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf, prod
from typing import Any
from weakref import ref

import torch
from tests.contract.masking import LAST_MAPS
from tests.contract.runs import Batch
from tests.families import Sample
from torch import Tensor, nn

from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

Masks = list[Tensor]  # by layer, [B, columns, F]: the neurons that each token has


def last_maps(sample: Sample, model: nn.Module) -> list[nn.Module]:
    """The linear map that ends each layer's FF."""
    found = []
    for block in sample.blocks(model):
        # A norm may end the branch; the map is then the FF module's own.
        names = dict(block.named_modules())
        (last,) = {
            names[name]
            for name in names
            for home in (sample.ffn.leave, "mlp")
            if name == home or name.startswith(f"{home}.")
            if name.rpartition(".")[2] in LAST_MAPS | {"fc_out"}
        }
        found.append(last)
    return found


@contextmanager
def _hooked(
    maps: list[nn.Module],
    batch: int,
    masks: Masks | None,
    seen: Masks,
    instead: Masks | None = None,
) -> Iterator[None]:
    """With `masks`, the neurons outside them are set to `instead` (or to zero)."""

    def hook(layer: int) -> object:
        def enter(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            h = args[0]
            wide = h.reshape(batch, -1, h.shape[-1])
            if masks is not None:
                wide = wide * masks[layer]
            if masks is not None and instead is not None:
                wide = wide + (instead[layer] * (1 - masks[layer])).to(wide.dtype)
            seen[layer] = wide.double()
            return (wide.reshape(h.shape),)

        return maps[layer].register_forward_pre_hook(enter)

    handles = [hook(layer) for layer in range(len(maps))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def neurons_of(sample: Sample, model: nn.Module, ids: Tensor) -> Masks:
    """The neurons' values [B, columns, F] in float64, by layer, for ids [B, columns]."""
    maps = last_maps(sample, model)
    seen: Masks = [torch.empty(0)] * len(maps)
    with _hooked(maps, len(ids), None, seen):
        model(input_ids=ids, use_cache=False)
    return seen


@torch.no_grad()
def thinned(
    sample: Sample,
    model: nn.Module,
    batch: Batch,
    columns: int,
    keep: float,
    refresh: int = 0,
    remembers: float = inf,
    fill: str = "zero",
) -> tuple[Tensor, Masks]:
    """Logits [tokens, V] from column `columns` - 1 on, and the masks that gave them.

    After `refresh` columns the next one is computed with every neuron, and with them those before
    it, unless a cache that `remembers` so many columns has let some go. With `fill` "mean", neurons
    that are left out are what they were on average where every neuron was read.
    """
    maps = last_maps(sample, model)
    seen: Masks = [torch.empty(0)] * len(maps)

    def run(masks: Masks | None) -> Tensor:
        with _hooked(maps, len(batch.ids), masks, seen, instead):
            return model(**batch.part(0, batch.length), use_cache=False).logits

    instead: Masks | None = None
    whole = run(None)
    masks = [torch.ones_like(z, dtype=torch.float32) for z in seen]
    sums = [_squares(z[:, :columns], batch.mask[:, :columns]) for z in seen]
    real = batch.mask[:, :columns, None]
    totals = [(z[:, :columns] * real).sum(1, keepdim=True) for z in seen]
    counts = batch.mask[:, :columns].sum(1)[:, None, None].double()
    if fill == "mean":
        instead = [torch.zeros_like(z) for z in seen]
    found, since = [whole[:, columns - 1]], 0
    for column in range(columns, batch.length):
        if refresh and since == refresh:
            first = column - refresh if column <= remembers else column
            for mask in masks:
                mask[:, first:column] = 1
            found.append(run(masks)[:, column])
            for layer, z in enumerate(seen):
                sums[layer] += _squares(z[:, first : column + 1], torch.ones(1, 1))
                totals[layer] += z[:, first : column + 1].sum(1, keepdim=True)
            counts = counts + column + 1 - first
            since = 0
            continue
        for mask, total in zip(masks, sums, strict=True):
            count = int(keep * total.shape[-1] + 1e-6)
            mask[:, column] = _best(total.sqrt(), count)
        for layer, total in enumerate(totals if instead else []):
            instead[layer][:, column] = (total / counts)[:, 0]  # pyright: ignore[reportOptionalSubscript]
        found.append(run(masks)[:, column])
        since += 1
    return torch.stack(found, 1).flatten(0, 1), masks


def _squares(z: Tensor, real: Tensor) -> Tensor:
    norms = z.norm(dim=-1, keepdim=True)
    shares = torch.where(norms > 0, z / norms, 0.0)
    return (shares**2 * real[..., None]).sum(1)


def _best(scores: Tensor, count: int) -> Tensor:
    order = scores.argsort(dim=-1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.float32).scatter_(-1, order, 1.0)


# --- one set for good ---------------------------------------------------------------------------


def widths(anatomy: Anatomy) -> list[int]:
    """The neurons of each FF, by the map that ends it."""
    ends = []
    for layer in anatomy.layers:
        parts = [part for part in layer.ffn.parts if part.role == "projection"]
        ends.append(prod(parts[-1].shape) // anatomy.hidden_size)
    return ends


def _kept(plan: Plan) -> dict[int, list[int]]:
    """The neurons kept, by layer; those of layers that keep all are not listed."""
    return {
        int(name.split(".")[2]): value.tolist()
        for name, value in plan.values.items()
        if name.startswith("experts.ffn.") and name.endswith(".kept")
    }


@contextmanager
def fixed(sample: Sample, model: nn.Module, plan: Plan) -> Iterator[None]:
    """Set, while the context lasts, every neuron to zero that the plan does not keep."""
    maps = last_maps(sample, model)

    def only(rows: list[int]) -> Any:
        def enter(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            mask = torch.zeros(args[0].shape[-1])
            mask[rows] = 1
            return (args[0] * mask,)

        return enter

    def correct(rows: list[int], change: Tensor) -> Any:
        return lambda _, args, output: output + args[0][..., rows] @ change.float().T

    handles = []
    for layer, rows in _kept(plan).items():
        handles.append(maps[layer].register_forward_pre_hook(only(rows)))
        if (change := plan.values.get(f"experts.ffn.{layer}.repair")) is not None:
            handles.append(maps[layer].register_forward_hook(correct(rows, change)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def neurons_gone(sample: Sample, model: nn.Module, plan: Plan) -> Iterator[ref[Any]]:
    """Weak references to the dense weights of the FFs that keep some neurons only."""
    for layer in _kept(plan):
        block = sample.blocks(model)[layer]
        for path in {sample.ffn.enter, sample.ffn.leave}:
            weights = block.get_submodule(path).parameters()
            yield from (ref(weight) for weight in weights if weight.dim() == 2)


def neurons_saved(
    sample: Sample,
    model: nn.Module,
    plan: Plan,
    branches: Mapping[tuple[str, int], int],
    tokens: int,
) -> int:
    """FLOPs of the neurons that are gone."""
    del tokens
    maps: list[Any] = last_maps(sample, model)
    saved = 0
    for layer, rows in _kept(plan).items():
        width = maps[layer].weight.numel() // model.config.hidden_size
        saved += branches["ffn", layer] * (width - len(rows)) // width
    return saved
