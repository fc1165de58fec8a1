"""Planned models in vLLM: its own class of the family, each layer carved as soon as it is built.

No modelling code is copied. A left-out branch's place is taken by the fill of
:mod:`skimp.models.carve`, and by :class:`Sum` where vLLM's norm also adds to the residual stream;
its attention is struck from the list that the KV cache is laid out by. Weights are loaded by their
names, as vLLM loads the family's.

With tensor parallelism fills stand on every device, as norms do: they read and give whole states,
and are much smaller than what they stand for.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from skimp.export.vllm_plugin.families import STOCK, Stock
from skimp.models.carve import KEEP, make_fill

Make = Callable[..., tuple[int, int, nn.ModuleList]]


class Sum(nn.Module):
    """vLLM's norm without the norm: what it adds to the residual stream is still added."""

    def forward(self, states: Tensor, residual: Tensor | None = None) -> Any:
        if residual is None:
            return states
        added = states + residual
        return added, added


def __getattr__(name: str) -> Any:
    """The planned class of that name, made when vLLM first asks for it."""
    for stock in STOCK.values():
        if stock.planned == name:
            globals()[name] = made = planned_class(stock)
            return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def planned_class(stock: Stock) -> type:
    """A subclass of vLLM's class that builds itself carved."""
    base: Any = getattr(_models(stock.module), stock.model)
    layers = _models(stock.layers)

    class Planned(base):
        # Beside the weights a folder holds plan.safetensors, which is none of vLLM's business.
        allow_patterns_overrides = ("model*.safetensors",)

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            with _carving(layers, vllm_config):
                super().__init__(vllm_config=vllm_config, prefix=prefix)

    Planned.__name__ = Planned.__qualname__ = stock.planned
    Planned.__module__ = __name__
    return Planned


def _models(name: str) -> Any:
    return import_module(f"vllm.model_executor.models.{name}")


@contextmanager
def _carving(module: Any, vllm_config: Any) -> Iterator[None]:
    """Meanwhile `module` makes carved layers, one after the other: none is dense for long."""
    make: Make = module.make_layers

    def made(count: int, build: Callable[..., Any], prefix: str) -> Any:
        return make(count, lambda prefix: carved(build, prefix, vllm_config), prefix)

    module.make_layers = made
    try:
        yield
    finally:
        module.make_layers = make


def carved(build: Callable[..., Any], prefix: str, vllm_config: Any) -> nn.Module:
    """The layer that `build` makes, without what the plan leaves out.

    Args:
        build: vLLM's maker of a layer, called with its prefix.
        prefix: the layer's name in the model, which ends in its place among those that remain.
        vllm_config: whose model config has the layout.
    """
    config = vllm_config.model_config.hf_config
    layout = config.skimp["layout"]
    place = int(prefix.rpartition(".")[2])
    entry = layout["kept"][place]
    layer = _of_width(build, prefix, config, entry.get("neurons"), vllm_config)
    for kind in ("attention", "ffn"):
        if entry[kind] != KEEP:
            _fill(layer, layout[kind], entry[kind], config.hidden_size)
    if entry["attention"] != KEEP:
        _forget_attention(vllm_config, f"{prefix}.{layout['attention']['modules'][0]}.")
    start = f"{layout['layers']}.{place}."
    for path in layout["biases"]:
        if path.startswith(start):
            _add_bias(layer.get_submodule(path.removeprefix(start)))
    return layer


def _of_width(
    build: Callable[..., Any],
    prefix: str,
    config: Any,
    neurons: Mapping[str, Any] | None,
    vllm_config: Any,
) -> nn.Module:
    """The layer with as many neurons in its FF as are left; vLLM asks the config how many."""
    if neurons is None:
        return build(prefix=prefix)
    width, devices = neurons["width"], vllm_config.parallel_config.tensor_parallel_size
    if width % devices:
        raise ValueError(
            f"{prefix}: the plan leaves its FF {width} neurons, which {devices} devices cannot "
            "share evenly; set tensor_parallel_size to a divisor, or plan other widths."
        )
    whole = config.intermediate_size
    config.intermediate_size = width
    try:
        return build(prefix=prefix)
    finally:
        config.intermediate_size = whole


def _fill(layer: nn.Module, branch: Mapping[str, Any], kind: str, size: int) -> None:
    *leading, last = branch["modules"]
    fill = make_fill(kind, 1, size).requires_grad_(False)
    for name in leading:
        setattr(layer, name, nn.Identity())
    setattr(layer, last, fill)
    if not fill.reads_norm:
        for name in branch["before"]:
            setattr(layer, name, Sum())
    for name in branch["after"]:
        setattr(layer, name, nn.Identity())


def _forget_attention(vllm_config: Any, prefix: str) -> None:
    """Or vLLM would keep a cache for it."""
    known = vllm_config.compilation_config.static_forward_context
    for name in [name for name in known if name.startswith(prefix)]:
        del known[name]


def _add_bias(linear: Any) -> None:
    """A bias for an output map: whole on every device, added by the first (vLLM sees to that)."""
    weight = linear.weight
    size = linear.output_size
    bias = nn.Parameter(
        torch.empty(size, dtype=linear.params_dtype, device=weight.device), requires_grad=False
    )
    bias.weight_loader = linear.weight_loader  # type: ignore[attr-defined]
    linear.bias = bias
