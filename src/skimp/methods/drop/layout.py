"""From a `drop` section to the layout that :func:`skimp.models.carve.carve` follows."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

import skimp
from skimp.methods.base import Applying
from skimp.methods.drop.section import Drop
from skimp.methods.in_order import Place
from skimp.models.anatomy import KINDS, Anatomy, Kind, Layer, Part, Sublayer
from skimp.models.carve import KEEP

# Config values that hold one entry a layer, and so are cut with the layers.
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")


def make_layout(section: Drop, anatomy: Anatomy, model: nn.Module) -> dict[str, Any]:
    """Plain data that says how the planned model is built; stored in its config."""
    config: Any = model.config
    folds = mean_folds(section, anatomy)
    states = _states(section, folds)
    kept = []
    for layer in anatomy.layers:
        entry = {kind: states.get((layer.source, kind), KEEP) for kind in KINDS}
        if _stays(entry.values(), anatomy):
            kept.append({"source": layer.source, **entry})
    dense: dict[str, Any] = {"num_hidden_layers": anatomy.dense_layers}
    for name in PER_LAYER:
        values = getattr(config, name, None)
        if isinstance(values, (list, tuple)) and len(values) == anatomy.dense_layers:
            dense[name] = list(values)
    family = anatomy.family
    return {
        "model_type": anatomy.model_type,
        "fingerprint": anatomy.fingerprint,
        "layers": family.layers,
        "attention": _branch_data(family.attention),
        "ffn": _branch_data(family.ffn),
        "final_norm": family.final_norm,
        "parallel": family.parallel,
        "neutral": family.neutral,
        "attention_outputs": family.attention_outputs,
        "ffn_outputs": family.ffn_outputs,
        "layer_outputs": family.layer_outputs,
        "kv_heads": family.kv_heads,
        "dense": dense,
        "kept": kept,
        "biases": _new_biases(folds, anatomy, model, [entry["source"] for entry in kept]),
    }


def planned_block(work: Applying) -> dict[str, Any]:
    """What the config of a planned model says about it; that of the dense model before any plan."""
    block = getattr(work.model.config, "skimp", None)
    if block is None:
        layout = make_layout(Drop(), work.anatomy, work.model)
        block = {"version": skimp.__version__, "layout": layout}
    return block


def mean_folds(section: Drop, anatomy: Anatomy) -> dict[Place, Place]:
    """Which dropped sublayer's mean is folded into which kept sublayer's output bias.

    A constant may move back through the residual stream to the last sublayer that writes to it, so
    long as nothing in between reads it. In a parallel layer attention and FF read the same state,
    so there only the layer's own other branch will do.
    """
    if section.fill.name != "mean":
        return {}
    gone = set(section.sublayers)
    folds: dict[Place, Place] = {}
    writer: Place | None = None
    for layer in anatomy.layers:
        places: list[Place] = [(layer.source, kind) for kind in KINDS]
        if anatomy.family.parallel:
            kept = [
                p for p in places if p not in gone and output_part(layer.sublayer(p[1]), anatomy)
            ]
            writer = kept[0] if kept else None
        for place in places:
            if place in gone:
                if writer is not None:
                    folds[place] = writer
            elif not anatomy.family.parallel:
                writer = place if output_part(layer.sublayer(place[1]), anatomy) else None
    return folds


def output_part(sublayer: Sublayer, anatomy: Anatomy) -> Part | None:
    """The linear map that writes a branch's output, if a bias can be added to it."""
    branch = anatomy.family.attention if sublayer.kind == "attention" else anatomy.family.ffn
    ends = tuple(f".{path}" for path in branch.output)
    return next((part for part in sublayer.parts if part.path.endswith(ends)), None)


def repairable(section: Drop, anatomy: Anatomy) -> dict[Place, str]:
    """Output projections that a repair can correct, relative to their layer.

    Those of kept sublayers behind the first that is left out, in families whose branches are added
    to the residual stream as they are.
    """
    if not section.repairs or not section.sublayers:
        return {}
    order: list[Place] = [(layer.source, kind) for layer in anatomy.layers for kind in KINDS]
    behind = order[order.index(section.sublayers[0]) + 1 :]
    found = {}
    for source, kind in behind:
        part = output_part(anatomy.layers[source].sublayer(kind), anatomy)
        if part is not None and (source, kind) not in section.sublayers:
            found[source, kind] = part.path.removeprefix(f"{anatomy.family.layers}.{source}.")
    return found


def planned_path(path: str, anatomy: Anatomy, kept: list[int]) -> str:
    """A module's path after the layers that remain were renumbered."""
    prefix = f"{anatomy.family.layers}."
    index, _, rest = path.removeprefix(prefix).partition(".")
    return f"{prefix}{kept.index(int(index))}.{rest}"


def reduce(section: Drop, anatomy: Anatomy) -> Anatomy:
    """The anatomy of the planned model, worked out from the dense one."""
    folds = mean_folds(section, anatomy)
    states = _states(section, folds)
    layers = []
    for layer in anatomy.layers:
        fills = {
            kind: _reduced(layer.sublayer(kind), states.get((layer.source, kind), KEEP), anatomy)
            for kind in KINDS
        }
        if _stays([sublayer.state for sublayer in fills.values()], anatomy):
            layers.append(replace(layer, attention=fills["attention"], ffn=fills["ffn"]))
    for place in set(folds.values()):
        layers = [
            _with_bias(la, place[1], anatomy) if la.source == place[0] else la for la in layers
        ]
    return replace(anatomy, layers=tuple(layers))


def _states(section: Drop, folds: dict[Place, Place]) -> dict[Place, str]:
    names = {"zero": "zero", "mean": "constant", "linear": str(section.fill)}
    return {
        place: "zero" if place in folds else names[section.fill.name] for place in section.sublayers
    }


def _stays(states: Iterable[str], anatomy: Anatomy) -> bool:
    """Whether anything of a layer remains; norms that act on the residual stream itself do."""
    return not anatomy.family.neutral or any(state != "zero" for state in states)


def _branch_data(branch: Any) -> dict[str, list[str]]:
    return {name: list(paths) for name, paths in vars(branch).items()}


def _new_biases(
    folds: dict[Place, Place], anatomy: Anatomy, model: nn.Module, kept: list[int]
) -> list[str]:
    paths = set()
    for source, kind in folds.values():
        part = output_part(anatomy.layers[source].sublayer(kind), anatomy)
        assert part is not None
        if model.get_submodule(part.path).bias is None:
            paths.add(planned_path(part.path, anatomy, kept))
    return sorted(paths)


def _reduced(sublayer: Sublayer, state: str, anatomy: Anatomy) -> Sublayer:
    if state == KEEP:
        return sublayer
    size, width = anatomy.hidden_size, anatomy.element_bytes
    path = sublayer.parts[-1].path
    parts: tuple[Part, ...] = ()
    if state == "constant":
        parts = (Part(path, "fill", (size,), size, size * width),)
    elif state.startswith("linear"):
        norms = tuple(part for part in sublayer.parts if part.role == "norm")
        before = anatomy.family.attention if sublayer.kind == "attention" else anatomy.family.ffn
        kept = tuple(p for p in norms if any(p.path.endswith(f".{n}") for n in before.before))
        rank = state.partition(":")[2]
        shapes = [(size, size)] if rank == "full" else [(int(rank), size), (size, int(rank))]
        maps = [Part(path, "fill", shape, shape[0] * shape[1], 0) for shape in shapes]
        maps[-1] = replace(maps[-1], parameters=maps[-1].parameters + size)
        parts = (*kept, *(replace(part, bytes=part.parameters * width) for part in maps))
    return Sublayer(sublayer.kind, state, parts)


def _with_bias(layer: Layer, kind: Kind, anatomy: Anatomy) -> Layer:
    sublayer = layer.sublayer(kind)
    part = output_part(sublayer, anatomy)
    assert part is not None
    if part.parameters > part.shape[0] * part.shape[1]:
        return layer
    bias = anatomy.hidden_size
    grown = replace(
        part, parameters=part.parameters + bias, bytes=part.bytes + bias * anatomy.element_bytes
    )
    parts = tuple(grown if each is part else each for each in sublayer.parts)
    changed = replace(sublayer, parts=parts)
    return replace(layer, **{kind: changed})
