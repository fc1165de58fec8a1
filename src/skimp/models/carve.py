"""Carve a planned model out of a dense one: the one place where sublayers are left out.

This file depends on torch alone, because a copy of it travels inside every folder that skimp
writes, where it is what makes the model load without skimp. The *layout* it follows is plain data:

    layers             path of the list of layers
    attention, ffn     {"modules": [...], "before": [norms], "after": [norms]}, relative to a layer
    attention_outputs, ffn_outputs  values that the branch's last module returns
    dense              the config values of the dense model that the carving changes
    kept               one entry a layer that remains: {"source", "attention", "ffn"}, each sublayer
                       being "keep" or the fill in its place: "zero", "constant", "linear:RANK"; and
                       "neurons" where a kept FF is narrower than in the dense model: the "width" it
                       has left, its "inputs" and "output" maps (paths relative to the layer), and
                       whether they are "fused" (one input map for gate and up)
    biases             modules (paths in the planned model) that gain a bias the dense one lacks
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

KEEP = "keep"
SetAttribute = Callable[[Any, str, Any], None]


class Fill(nn.Module):
    """What stands in a dropped branch's place; returns as many values as the branch did."""

    reads_norm = False

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def value_at(self, hidden: Tensor) -> Tensor:
        """The replacement of the branch's output at `hidden` [..., d]."""
        raise TypeError(f"{type(self).__name__} does not say what it returns")

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        value = self.value_at(hidden_states)
        return value if self.outputs == 1 else (value, *[None] * (self.outputs - 1))


class Zero(Fill):
    """Nothing: the residual stream passes unchanged."""

    def value_at(self, hidden: Tensor) -> Tensor:
        # A real tensor, not an expanded view: some families add to it in place.
        return torch.zeros_like(hidden)


class Constant(Fill):
    """The same vector for every token."""

    def __init__(self, outputs: int, size: int) -> None:
        super().__init__(outputs)
        self.value = nn.Parameter(torch.empty(size))

    def value_at(self, hidden: Tensor) -> Tensor:
        return self.value.expand_as(hidden).clone()


class Linear(Fill):
    """A (reduced-rank) affine map of the branch's normalised input; `rank` None: no limit."""

    reads_norm = True

    def __init__(self, outputs: int, size: int, rank: int | None) -> None:
        super().__init__(outputs)
        self.down = nn.Identity() if rank is None else nn.Linear(size, rank, bias=False)
        self.up = nn.Linear(size if rank is None else rank, size)

    def value_at(self, hidden: Tensor) -> Tensor:
        return self.up(self.down(hidden))


def make_fill(kind: str, outputs: int, size: int) -> Fill:
    """Build the fill named `kind`: "zero", "constant", "linear:RANK" or "linear:full"."""
    if kind == "zero":
        return Zero(outputs)
    if kind == "constant":
        return Constant(outputs, size)
    name, _, rank = kind.partition(":")
    if name != "linear":
        raise ValueError(f"unknown fill {kind!r} in the model's layout")
    return Linear(outputs, size, None if rank == "full" else int(rank))


def put_branch(layer: nn.Module, branch: Any, fill: Fill, assign: SetAttribute = setattr) -> None:
    """Put `fill` in place of a branch's modules; norms that nothing reads any more go too."""
    spec = branch if isinstance(branch, Mapping) else vars(branch)
    *leading, last = spec["modules"]
    for name in leading:
        assign(layer, name, nn.Identity())
    assign(layer, last, fill)
    for name in [*([] if fill.reads_norm else spec["before"]), *spec["after"]]:
        assign(layer, name, nn.Identity())


def narrow(layer: nn.Module, neurons: Mapping[str, Any], assign: SetAttribute = setattr) -> None:
    """Leave an FF `neurons["width"]` neurons; the weights of its maps are then uninitialised."""
    width = neurons["width"]
    for path in neurons["inputs"]:
        _resize(layer.get_submodule(path), 2 * width if neurons["fused"] else width, assign)
    _resize(layer.get_submodule(neurons["output"]), width, assign, inputs=True)


def neuron_axis(linear: nn.Module, *, inputs: bool) -> int:
    """The dimension of a linear map's weight that its inputs, or else its outputs, lie along."""
    # nn.Linear stores [out, in]; GPT-2's Conv1D the other way round.
    return int(isinstance(linear, nn.Linear) == inputs)


def _resize(linear: Any, size: int, assign: SetAttribute, *, inputs: bool = False) -> None:
    weight, bias = linear.weight, linear.bias
    shape, axis = list(weight.shape), neuron_axis(linear, inputs=inputs)
    if not 0 < size <= shape[axis]:
        raise ValueError(f"a width of {size} in the model's layout, for a map of {shape[axis]}")
    shape[axis] = size

    def new(like: nn.Parameter, *shape: int) -> nn.Parameter:
        empty = torch.empty(shape, dtype=like.dtype, device=like.device)
        return nn.Parameter(empty, requires_grad=like.requires_grad)

    assign(linear, "weight", new(weight, *shape))
    if bias is not None and not inputs:
        assign(linear, "bias", new(bias, size))
    plain = isinstance(linear, nn.Linear)
    names = ("out_features", "in_features") if plain else ("nf", "nx")
    assign(linear, names[inputs], size)


def carve(model: nn.Module, layout: Mapping[str, Any], assign: SetAttribute = setattr) -> None:
    """Turn the dense `model` into the planned one, in place, every change made by `assign`.

    Fills, new biases and narrowed maps are created uninitialised, in the dtype and on the device of
    the model.
    """
    config: Any = model.config
    like = next(model.parameters())
    parent_path, _, name = layout["layers"].rpartition(".")
    parent = model.get_submodule(parent_path)
    dense: Any = getattr(parent, name)
    size = config.hidden_size
    kept = []
    for entry in layout["kept"]:
        layer = dense[entry["source"]]
        kept.append(layer)
        for kind in ("attention", "ffn"):
            if entry[kind] != KEEP:
                fill = make_fill(entry[kind], layout[f"{kind}_outputs"], size)
                fill = fill.to(like.device, like.dtype).requires_grad_(like.requires_grad)
                put_branch(layer, layout[kind], fill, assign)
        if "neurons" in entry:
            narrow(layer, entry["neurons"], assign)
    assign(parent, name, nn.ModuleList(kept))
    _renumber(config, kept, layout, assign)
    for path in layout["biases"]:
        module = model.get_submodule(path)
        weight: Any = module.weight
        bias = nn.Parameter(torch.empty(weight.shape[0], dtype=weight.dtype, device=weight.device))
        assign(module, "bias", bias)


def _renumber(
    config: Any, kept: list[nn.Module], layout: Mapping[str, Any], assign: SetAttribute
) -> None:
    """Give each kept attention its KV entry and cut the config to the layers that remain.

    transformers takes sequence length and masks from the first cache entry (of each attention
    type), so that entry must be one that is written: attention-free layers take the type of entry
    0, and if layer 0 is attention-free the first kept attention moves into entry 0.
    """
    sources = [entry["source"] for entry in layout["kept"]]
    attends = [entry["attention"] == KEEP for entry in layout["kept"]]
    slots = list(range(len(kept)))
    first = attends.index(True)
    slots[first] = 0
    path = layout["attention"]["modules"][0]
    for layer, slot, keeps in zip(kept, slots, attends, strict=True):
        if keeps:
            assign(layer.get_submodule(path), "layer_idx", slot)
    for key, values in layout["dense"].items():
        if not isinstance(values, list):
            continue
        cut = [values[source] for source in sources]
        if key == "layer_types":
            cut = [t if keeps else cut[first] for t, keeps in zip(cut, attends, strict=True)]
        assign(config, key, cut)
    assign(config, "num_hidden_layers", len(kept))


def planned_class(base: type) -> type:
    """A subclass of the transformers model class `base` that builds itself carved.

    Its config holds the layout under `skimp`; the dense model exists only on the meta device, on
    the way.
    """

    class Planned(base):
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            layout = config.skimp["layout"]
            for key, value in layout["dense"].items():
                setattr(config, key, value)
            super().__init__(config, *args, **kwargs)
            carve(self, layout)

    Planned.__name__ = Planned.__qualname__ = "PlannedForCausalLM"
    return Planned
