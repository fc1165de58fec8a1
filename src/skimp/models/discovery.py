"""Find the sublayers of a decoder that has no row in :mod:`skimp.models.families`.

One token is sent through a layer of each make while its children report what they read and wrote.
Which norm belongs to which branch then follows from the identity of tensors, not from names; the
finding is accepted only if all makes agree and the layer without both branches leaves the residual
stream untouched.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from skimp.errors import LoadError
from skimp.models.carve import Zero, put_branch
from skimp.models.families import Branch, Family
from skimp.models.surgery import Surgery

# What `layer_types` may say: attention that caches keys and values, one entry a token.
_KNOWN_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    read: Tensor | None
    wrote: Tensor
    outputs: int


class _Stop(Exception):
    """Ends the probing pass after the layer that is probed."""


def discover(model: nn.Module) -> Family:
    """Read the family row of an unknown decoder off its layers.

    Raises:
        LoadError: they are not residual decoder blocks, all alike, that skimp can take apart.
    """
    if any(weight.is_meta for weight in model.parameters()):
        raise _refuse(model, "without its weights its layers cannot be probed")
    path, layers = _find_layers(model)
    _check_config(model)
    makes: dict[Any, Family] = {}
    for layer in layers:
        make = tuple((name, type(child)) for name, child in layer.named_children())
        if make not in makes:
            makes[make] = _read_layer(model, path, layer)
    first, *others = makes.values()
    if any(other != first for other in others):
        raise _refuse(model, "its layers are not alike")
    return first


def _check_config(model: nn.Module) -> None:
    config: Any = model.config
    if strange := set(getattr(config, "layer_types", None) or ()) - _KNOWN_TYPES:
        raise _refuse(model, f"skimp does not know layers of type {min(strange)!r}")
    if any(getattr(config, name, None) for name in ("num_kv_shared_layers", "kv_sharing_modes")):
        raise _refuse(model, "some of its layers read the KV cache of others")


def _read_layer(model: nn.Module, path: str, layer: nn.Module) -> Family:
    calls, residual, arguments, layer_outputs = _trace(model, layer)
    attention = [c for c in calls if _is_attention(c)]
    if len(attention) != 1:
        raise _refuse(model, f"found {len(attention)} attention modules in a layer")
    ffn = [c for c in calls if c not in attention and not _is_norm(c.module) and _has_weights(c)]
    if not ffn:
        raise _refuse(model, "found no feed-forward module in a layer")
    first, last = calls.index(ffn[0]), calls.index(ffn[-1])
    span = [c for c in calls[first : last + 1] if c not in attention]
    if any(after.read is not before.wrote for before, after in pairwise(span)):
        raise _refuse(model, "its feed-forward modules do not form one chain")

    norms = [c for c in calls if _is_norm(c.module)]
    shared = {n.name for n in norms if n.wrote is attention[0].read and n.wrote is span[0].read}
    family = Family(
        layers=path,
        attention=_branch([attention[0]], norms, shared),
        ffn=_branch(span, norms, shared),
        final_norm=_find_final_norm(model, path),
        parallel=_source(span[0], norms) is residual,
        attention_outputs=attention[0].outputs,
        ffn_outputs=span[-1].outputs,
        layer_outputs=layer_outputs,
    )
    _check_neutral(model, layer, family, residual, arguments)
    return family


def _find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    count = getattr(model.config, "num_hidden_layers", None)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise _refuse(model, "found no list of decoder layers")
    return min(found, key=lambda item: item[0].count("."))


def _trace(
    model: nn.Module, layer: nn.Module
) -> tuple[list[_Call], Tensor, tuple[tuple, dict], int]:
    calls: list[_Call] = []
    outputs: list[int] = []
    entry: list[tuple[Tensor, tuple[tuple, dict]]] = []

    def enter(_: nn.Module, args: tuple, kwargs: dict) -> None:
        entry.append((_first_tensor(args, kwargs), (args, kwargs)))

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            values = output if isinstance(output, tuple) else (output,)
            read = _first_tensor(args, kwargs)
            calls.append(_Call(name, module, read, values[0], len(values)))

        return hook

    def leave(_: nn.Module, __: tuple, output: Any) -> None:
        outputs.append(len(output) if isinstance(output, tuple) else 1)
        raise _Stop

    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True)]
    for name, child in layer.named_children():
        handles.append(child.register_forward_hook(record(name), with_kwargs=True))
    handles.append(layer.register_forward_hook(leave))
    token = torch.ones(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            model(input_ids=token, use_cache=False)
    except _Stop:
        pass
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise _refuse(model, f"one token cannot be sent through it ({reason})") from error
    finally:
        for handle in handles:
            handle.remove()
    if not entry:
        raise _refuse(model, "its layers were not called by its forward pass")
    return calls, entry[0][0], entry[0][1], outputs[0]


def _first_tensor(args: tuple, kwargs: dict) -> Any:
    named = kwargs.get("hidden_states")
    return named if named is not None else next((a for a in args if isinstance(a, Tensor)), None)


def _is_attention(call: _Call) -> bool:
    name = f"{call.name} {type(call.module).__name__}".lower()
    return "att" in name and not _is_norm(call.module) and _has_weights(call)


def _is_norm(module: nn.Module) -> bool:
    weights = list(module.parameters())
    named = "norm" in type(module).__name__.lower()
    return named and all(weight.dim() == 1 for weight in weights)


def _has_weights(call: _Call) -> bool:
    return next(call.module.parameters(), None) is not None


def _branch(span: list[_Call], norms: list[_Call], shared: set[str]) -> Branch:
    before = tuple(n.name for n in norms if n.wrote is span[0].read and n.name not in shared)
    after = tuple(n.name for n in norms if n.read is span[-1].wrote)
    return Branch(tuple(call.name for call in span), before, after)


def _source(call: _Call, norms: list[_Call]) -> Tensor | None:
    """The tensor that a branch reads, before its norm."""
    return next((n.read for n in norms if n.wrote is call.read), call.read)


def _find_final_norm(model: nn.Module, layers_path: str) -> str:
    parent_path = layers_path.rpartition(".")[0]
    parent = model.get_submodule(parent_path)
    names = [name for name, child in parent.named_children() if _is_norm(child)]
    if not names:
        return ""
    return f"{parent_path}.{names[-1]}" if parent_path else names[-1]


def _check_neutral(
    model: nn.Module,
    layer: nn.Module,
    family: Family,
    residual: Tensor,
    arguments: tuple[tuple, dict],
) -> None:
    args, kwargs = arguments
    before = residual.clone()
    surgery = Surgery()
    try:
        put_branch(layer, family.attention, Zero(family.attention_outputs), surgery.set)
        put_branch(layer, family.ffn, Zero(family.ffn_outputs), surgery.set)
        with torch.no_grad():
            output = layer(*args, **kwargs)
    finally:
        surgery.undo()
    output = output[0] if isinstance(output, tuple) else output
    if not torch.equal(output, before):
        raise _refuse(model, "its layers do more than add their branches to the residual stream")


def _refuse(model: nn.Module, reason: str) -> LoadError:
    kind = getattr(model.config, "model_type", type(model).__name__)
    return LoadError(
        f"model type {kind!r} cannot be taken apart: {reason}; add a row for it to "
        "skimp/models/families.py."
    )
