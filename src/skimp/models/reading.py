"""Read the anatomy of a model off its modules."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from skimp.models.anatomy import KINDS, Anatomy, Kind, Layer, Part, Sublayer
from skimp.models.carve import KEEP, Fill
from skimp.models.discovery import discover
from skimp.models.families import FAMILIES, Branch, Family


def family_of(model: nn.Module) -> Family:
    """The family row of a dense or planned model, by its type or by discovery."""
    config: Any = model.config
    layout = getattr(config, "skimp", {}).get("layout") if hasattr(config, "skimp") else None
    if layout is not None:
        return family_from_layout(layout)
    row = FAMILIES.get(config.model_type)
    return row(config) if row else discover(model)


def family_from_layout(layout: dict[str, Any]) -> Family:
    """Rebuild the row that a planned model's layout was written from."""
    branches = {
        kind: Branch(**{name: tuple(paths) for name, paths in layout[kind].items()})
        for kind in KINDS
    }
    return Family(
        layers=layout["layers"],
        attention=branches["attention"],
        ffn=branches["ffn"],
        final_norm=layout["final_norm"],
        parallel=layout["parallel"],
        neutral=layout["neutral"],
        attention_outputs=layout["attention_outputs"],
        ffn_outputs=layout["ffn_outputs"],
        layer_outputs=layout["layer_outputs"],
        kv_heads=layout["kv_heads"],
    )


def read_anatomy(model: nn.Module) -> Anatomy:
    """Read the anatomy of a dense or planned model; see :meth:`Anatomy.of`."""
    root: Any = model
    config = root.config
    family = family_of(model)
    planned = getattr(config, "skimp", None)
    kept = planned["layout"]["kept"] if planned else None
    experts = planned.get("experts", {}) if planned else {}
    shares = experts.get("shares", {})
    blocks: list[nn.Module] = list(root.get_submodule(family.layers))
    layers = []
    for index, block in enumerate(blocks):
        entry = kept[index] if kept else {"source": index, "attention": KEEP, "ffn": KEEP}
        path = f"{family.layers}.{index}"
        layer = _read_layer(block, path, family, config, entry, _window(config, index))
        share = shares.get(layer.source, 1.0)
        layers.append(replace(layer, ffn=replace(layer.ffn, decode_share=share)))
    embedding_module = root.get_input_embeddings()
    head_module = root.get_output_embeddings()
    embedding = _part(_path_of(model, embedding_module), "embedding", embedding_module)
    head = _part(_path_of(model, head_module), "head", head_module)
    dense_layers = planned["layout"]["dense"]["num_hidden_layers"] if planned else len(blocks)
    return Anatomy(
        model_type=planned["layout"]["model_type"] if planned else config.model_type,
        family=family,
        hidden_size=config.hidden_size,
        vocabulary=embedding.shape[0],
        context_length=getattr(config, "max_position_embeddings", None),
        dense_layers=dense_layers,
        layers=tuple(layers),
        embedding=embedding,
        head=head,
        tied=head_module.weight is embedding_module.weight,
        rest=tuple(_rest(model, family, (embedding_module, head_module))),
        element_bytes=embedding_module.weight.element_size(),
        fingerprint=planned["layout"]["fingerprint"] if planned else fingerprint(model),
        refresh=experts.get("refresh", 0),
    )


def _read_layer(
    block: nn.Module,
    path: str,
    family: Family,
    config: Any,
    entry: dict[str, Any],
    window: int | None,
) -> Layer:
    attention = _read_branch(block, path, "attention", family.attention, entry["attention"])
    if attention.state == KEEP:
        attention = replace(attention, **_heads(block, family, config), window=window)
    ffn = _read_branch(block, path, "ffn", family.ffn, entry["ffn"])
    if ffn.state == KEEP:
        ffn = replace(ffn, active_share=_active_share(ffn, config))
    owned = {
        id(weight) for branch in (family.attention, family.ffn) for weight in _own(block, branch)
    }
    shared = tuple(
        _part(f"{path}.{name}", "norm" if _weight_dims(module) == 1 else "other", module)
        for name, module in block.named_children()
        if any(id(weight) not in owned for weight in module.parameters())
    )
    return Layer(entry["source"], attention, ffn, shared)


def _own(block: nn.Module, branch: Branch) -> Iterator[nn.Parameter]:
    for name in (*branch.before, *branch.modules, *branch.after):
        yield from block.get_submodule(name).parameters()


def _read_branch(block: nn.Module, path: str, kind: Kind, branch: Branch, state: str) -> Sublayer:
    parts = []
    for name in (*branch.before, *branch.modules, *branch.after):
        module = block.get_submodule(name)
        if name not in branch.modules:
            parts.extend(_leaves(f"{path}.{name}", module, "norm"))
        else:
            role = "fill" if isinstance(module, Fill) else "projection"
            parts.extend(_leaves(f"{path}.{name}", module, role))
    return Sublayer(kind, state, tuple(parts))


def _leaves(path: str, module: nn.Module, role: Any) -> Iterator[Part]:
    for name, leaf in module.named_modules():
        weights = list(leaf.parameters(recurse=False))
        if weights:
            # Norms on queries and keys may hold a weight for every head, but are no products.
            flat = all(weight.dim() == 1 for weight in weights)
            is_norm = flat or "norm" in type(leaf).__name__.lower()
            own_role = "norm" if is_norm and role == "projection" else role
            yield _part(f"{path}.{name}" if name else path, own_role, leaf, recurse=False)


def _part(path: str, role: Any, module: nn.Module, recurse: bool = True) -> Part:
    weights = list(module.parameters(recurse=recurse))
    largest = max(weights, key=lambda weight: weight.numel(), default=torch.empty(0))
    return Part(
        path,
        role,
        tuple(largest.shape),
        sum(weight.numel() for weight in weights),
        sum(weight.numel() * weight.element_size() for weight in weights),
    )


def _weight_dims(module: nn.Module) -> int:
    """Dimensions of a module's largest weight."""
    return max((weight.dim() for weight in module.parameters()), default=0)


def _heads(block: nn.Module, family: Family, config: Any) -> dict[str, Any]:
    attention: Any = block.get_submodule(family.attention.modules[0])
    heads = config.num_attention_heads
    head_dim = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    head_dim = head_dim or getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = family.kv_heads or getattr(config, "num_key_value_heads", None) or heads
    kv_elements = 2 * kv_heads * head_dim
    if hasattr(attention, "kv_lora_rank"):
        # Latent attention: keys are wider than values, and the cache holds what both are made from.
        head_dim = (attention.qk_head_dim + attention.v_head_dim) // 2
        kv_elements = attention.kv_lora_rank + attention.qk_rope_head_dim
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "kv_elements": kv_elements,
    }


def _window(config: Any, index: int) -> int | None:
    """Tokens that the attention of a layer looks back on; None: all."""
    types = getattr(config, "layer_types", None)
    if types and types[index] == "chunked_attention":
        return config.attention_chunk_size
    slides = types is None or types[index] == "sliding_attention"
    return getattr(config, "sliding_window", None) if slides else None


def _active_share(ffn: Sublayer, config: Any) -> float:
    """Share of an FF's weights that one token reads: below 1 in a mixture of experts."""
    experts = [part for part in ffn.parts if len(part.shape) == 3]  # [experts, out, in]
    if not experts:
        return 1.0
    routed = sum(part.parameters for part in experts)
    read = routed * config.num_experts_per_tok / experts[0].shape[0]
    return (ffn.parameters - routed + read) / ffn.parameters


def _path_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, child in model.named_modules() if child is module)


def _rest(model: nn.Module, family: Family, listed: tuple[nn.Module, ...]) -> Iterator[Part]:
    seen = {id(weight) for module in listed for weight in module.parameters()}
    for name, module in model.named_modules():
        if name == family.layers or name.startswith(f"{family.layers}."):
            continue
        weights = [w for w in module.parameters(recurse=False) if id(w) not in seen]
        if weights:
            seen.update(id(weight) for weight in weights)
            role = "norm" if name == family.final_norm else "other"
            yield _part(name, role, module, recurse=False)


def fingerprint(model: nn.Module) -> str:
    """A hash of the dense model's type, shapes and the signs of a sample of its weights.

    Signs survive a change of dtype, so the same model in float32 and bfloat16 agrees, while a
    fine-tune of the same architecture does not.
    """
    config: Any = model.config
    digest = hashlib.sha256(str(config.model_type).encode())
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        if weight.dim() > 1 and weight.device.type != "meta":
            step = max(1, weight.numel() // 256)
            sample = weight.detach().reshape(-1)[::step][:256]
            digest.update((sample > 0).cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()[:32]}"
