"""One set of neurons for good: chosen on calibration text, the rest removed from the FFs.

The statistic and the choice are those of a prompt (GRIFFIN, Dong et al., 2024), taken over all of
the text. What remains is a model with narrower linear maps, which any engine runs as it is.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.errors import PlanError
from skimp.methods.base import Applying
from skimp.methods.drop.fit import repair
from skimp.methods.drop.layout import planned_block
from skimp.methods.experts.fit import calibrated_scores
from skimp.methods.experts.modules import by_neuron
from skimp.methods.experts.section import BLIND, Experts
from skimp.methods.experts.select import choose, magnitudes
from skimp.methods.in_order import Place
from skimp.models.anatomy import Anatomy, Layer, Part, Sublayer
from skimp.models.carve import narrow, neuron_axis
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.models.surgery import Surgery
from skimp.progress import Progress

_REMEDY = "run `skimp plan MODEL --fit plan.yaml`, or skimp.fit(model, tokenizer, plan)."


def kept_name(layer: int) -> str:
    """What the kept neurons of a layer of the dense model are called among a plan's values."""
    return f"experts.ffn.{layer}.kept"


def repair_name(layer: int) -> str:
    """What the correction [hidden, k] of an output map is called among a plan's values."""
    return f"experts.ffn.{layer}.repair"


def flatten(fitted: Mapping[Place, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Fitted tensors under the names that they have in a plan."""
    names = {"kept": kept_name, "repair": repair_name}
    return {
        names[name](layer): value
        for (layer, _), values in fitted.items()
        for name, value in values.items()
    }


def needs_rows(section: Experts) -> bool:
    """Whether kept neurons must have been fitted before the section can be applied."""
    shares = section.keep if isinstance(section.keep, tuple) else (section.keep,)
    return section.calibrated and min(shares) < 1


def fit_rows(section: Experts, replay: Replay, progress: Progress) -> dict[int, Tensor]:
    """The neurons that each layer keeps: int32 [k], ascending.

    Raises:
        PlanError: a layer whose FF is no plain or gated one.
    """
    wiring = feed_forwards(replay.model, Anatomy.of(replay.model))
    blind = section.select in BLIND
    scores = {} if blind else calibrated_scores(replay, progress)
    found = {}
    for layer, ffn in wiring.items():
        if section.dense(layer):
            continue
        chosen = choose(
            torch.zeros(1, ffn.width) if blind else scores[layer].square()[None],
            torch.ones(1, dtype=torch.long),
            section.count(layer, ffn.width),
            section,
            layer,
            magnitude=_magnitude(replay.model, ffn) if section.select == "magnitude" else None,
        )
        found[layer] = chosen.rows.cpu()
    return found


def cut(section: Experts, work: Applying) -> None:
    """Remove the neurons that are not kept, as the plan's values have it.

    Raises:
        PlanError: values that are missing or do not fit, or an FF that is no plain or gated one.
    """
    prefix = work.anatomy.family.layers
    wiring = feed_forwards(work.model, Anatomy.of(work.model))
    rows = {
        layer: _rows(section, layer, ffn.width, work.values)
        for layer, ffn in wiring.items()
        if not section.dense(layer)
    }
    kept = {layer: each for layer, each in rows.items() if len(each) < wiring[layer].width}
    block = planned_block(work)
    repairs = _repairs(section, kept, work) if section.repairs else {}
    entries = []
    for position, entry in enumerate(block["layout"]["kept"]):
        source, path = entry["source"], f"{prefix}.{position}"
        if source in kept:
            neurons = describe(wiring[source], path, len(kept[source]))
            layer = work.model.get_submodule(path)
            narrow_to(layer, neurons, kept[source], work.surgery)
            if source in repairs:
                change = {"repair": repairs[source]}
                repair(layer, neurons["output"], change, work.surgery)
            entry = {**entry, "neurons": neurons}
        entries.append(entry)
    if kept:
        layout = {**block["layout"], "kept": entries}
        work.surgery.set(work.model.config, "skimp", {**block, "layout": layout})


def narrowed(layer: Layer, section: Experts, hidden_size: int) -> Sublayer:
    """The FF of a layer that `cut` leaves, worked out without a model.

    Raises:
        PlanError: a mixture of experts.
    """
    ffn = layer.ffn
    if any(len(part.shape) > 2 for part in ffn.parts):
        raise PlanError(
            f"experts: the FF of layer {layer.source} is no plain or gated feed-forward (it is a "
            "mixture of experts); leave `experts` out of the plan."
        )
    width = width_of(ffn, hidden_size)
    count = section.count(layer.source, width)
    *_, output = _projections(ffn)
    parts = tuple(
        _cut_part(part, count, width, hidden_size, output=part is output)
        if part.role == "projection"
        else part
        for part in ffn.parts
    )
    return replace(ffn, parts=parts)


def width_of(ffn: Sublayer, hidden_size: int) -> int:
    """The neurons of an FF."""
    *_, output = _projections(ffn)
    return prod(output.shape) // hidden_size


def _projections(ffn: Sublayer) -> list[Part]:
    return [part for part in ffn.parts if part.role == "projection"]


def _cut_part(part: Part, count: int, width: int, hidden_size: int, *, output: bool) -> Part:
    """A projection with `count` of `width` neurons; an input map may be gate and up in one."""
    weights, element = prod(part.shape), part.bytes // part.parameters
    bias = part.parameters - weights
    per_neuron = weights // width
    left = per_neuron * count + (bias if output else bias * count // width)
    # Where both sides are as wide as the model, weights lie as in nn.Linear: [out, in].
    sides = [i for i, size in enumerate(part.shape) if size != hidden_size] or [int(output)]
    shape = list(part.shape)
    shape[sides[0]] = per_neuron * count // hidden_size
    return replace(part, shape=tuple(shape), parameters=left, bytes=left * element)


def _magnitude(model: nn.Module, ffn: FeedForward) -> Tensor:
    weights = [by_neuron(model.get_submodule(path)).detach() for path in ffn.inputs]
    return magnitudes([part for weight in weights for part in weight.split(ffn.width)])


def _rows(section: Experts, layer: int, width: int, values: Mapping[str, Tensor]) -> Tensor:
    """The kept neurons of a layer, int64 [k]; PlanError unless they are what the section asks."""
    name = kept_name(layer)
    if name not in values:
        raise PlanError(
            f"experts.scope: calibrated neurons have not been fitted ({name} is missing); {_REMEDY}"
        )
    found, count = values[name], section.count(layer, width)
    whole = not found.is_floating_point() and found.dtype != torch.bool
    if not whole or found.shape != (count,) or not _ascending(found, width):
        raise PlanError(
            f"{name}: does not list {count} of the neurons 0 to {width - 1} in ascending order, as "
            f"experts.keep has it; fit it anew: {_REMEDY}"
        )
    return found.long()


def _repairs(section: Experts, kept: Mapping[int, Tensor], work: Applying) -> dict[int, Tensor]:
    """The corrections of the layers that are cut; PlanError unless each is there in its shape."""
    found = {}
    for layer, rows in kept.items():
        name, shape = repair_name(layer), (work.anatomy.hidden_size, len(rows))
        if name not in work.values:
            raise PlanError(
                f"experts.repair: {section.repair} has not been fitted ({name} is missing); "
                f"{_REMEDY}"
            )
        found[layer] = work.values[name]
        if tuple(found[layer].shape) != shape:
            raise PlanError(
                f"{name}: has shape {tuple(found[layer].shape)}, but {shape} is needed; fit it "
                f"anew: {_REMEDY}"
            )
    return found


def _ascending(rows: Tensor, width: int) -> bool:
    inside = bool(rows[0] >= 0) and bool(rows[-1] < width)
    return inside and bool((rows[1:] > rows[:-1]).all())


def describe(ffn: FeedForward, path: str, count: int) -> dict[str, Any]:
    """The entry of the layout that :func:`skimp.models.carve.narrow` follows."""
    return {
        "inputs": [each.removeprefix(f"{path}.") for each in ffn.inputs],
        "output": ffn.output.removeprefix(f"{path}."),
        "fused": ffn.fused,
        "width": count,
    }


@torch.no_grad()
def narrow_to(layer: nn.Module, neurons: Mapping[str, Any], rows: Tensor, surgery: Surgery) -> None:
    """Leave the FF of a layer its neurons `rows` [k], as `describe` has it, reversibly."""
    output: Any = layer.get_submodule(neurons["output"])
    maps: list[Any] = [*map(layer.get_submodule, neurons["inputs"]), output]
    dense = [(each, each.weight, each.bias) for each in maps]
    width = output.weight.shape[neuron_axis(output, inputs=True)]
    narrow(layer, neurons, surgery.set)
    rows = rows.to(output.weight.device).long()
    entering = torch.cat([rows, rows + width]) if neurons["fused"] else rows
    for linear, weight, bias in dense:
        last = linear is output
        axis = neuron_axis(linear, inputs=last)
        linear.weight.copy_(weight.index_select(axis, rows if last else entering))
        if bias is not None and not last:
            linear.bias.copy_(bias[entering])
