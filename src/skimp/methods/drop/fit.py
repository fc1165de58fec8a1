"""Fit what stands in dropped branches' places, and repair what remains, on calibration text.

Nothing is trained by gradient: every fit is a closed form (:mod:`.closed_form`). The same walk
through the layers fits both, in running order, each with everything before it in place.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.methods.drop.closed_form import Moments, Values, solve_fill, solve_repair
from skimp.methods.drop.section import Drop, FillKind
from skimp.methods.drop.walk import Walk
from skimp.models.anatomy import KINDS, Kind
from skimp.models.carve import Constant, Fill, Linear, Zero, put_branch
from skimp.models.surgery import Surgery
from skimp.progress import SILENT, Progress

Place = tuple[int, Kind]


def fit_alone(replay: Replay, places: Iterable[Place], fill: FillKind) -> dict[Place, Values]:
    """Fit each fill as if its sublayer were the only one left out: one dense pass for all.

    Layer by layer, so that moments (float64, [d, d] a place) of one layer alone are held.
    """
    fitted: dict[Place, Values] = {place: {} for place in places}
    states = list(replay.entry)
    for index in range(max((layer + 1 for layer, _ in fitted), default=0)):
        moments: dict[Kind, Moments] = {kind: Moments() for layer, kind in fitted if layer == index}
        for batch, hidden in enumerate(states):
            real = replay.batches[batch].real
            traces, states[batch] = replay.watch(index, list(moments), hidden, batch)
            for kind, trace in traces.items():
                moments[kind].add(trace.input[real], trace.output[real])
        for kind, moment in moments.items():
            fitted[index, kind] = solve_fill(moment, fill)
    return fitted


def fit_in_order(
    replay: Replay, section: Drop, repairable: Mapping[Place, str], progress: Progress = SILENT
) -> dict[Place, Values]:
    """Fit a section's fills and, if it asks for them, repairs of the sublayers behind the first.

    Every target is what brings the residual stream back to the dense one behind the branch: the
    dense state there minus the planned state before it. So each fit also makes good what was lost
    before it, from what this branch knows; an attention sublayer can take over recall that a
    dropped neighbour did. `repairable` names output projections, relative to their layer.
    """
    fitted: dict[Place, Values] = {}
    surgery = Surgery()
    dense = planned = list(replay.entry)
    gone = section.sublayers
    first, last = gone[0][0], gone[-1][0]
    end = len(replay.layers) if section.repairs else last + 1
    apart = replay.additive(0, replay.entry[0], 0)
    try:
        with progress.task(f"fitting {section.fill} in order", end) as step:
            for index in range(end):
                if index < first:
                    # Before the first drop the planned states are the dense ones.
                    dense = planned = [replay.layer(index, s, b) for b, s in enumerate(dense)]
                    step()
                    continue
                seen = [replay.watch(index, KINDS, s, b) for b, s in enumerate(dense)]
                walk = Walk(replay, index, planned, seen, apart)
                for kind in KINDS:
                    place = (index, kind)
                    if place in gone:
                        fitted[place] = solve_fill(walk.fill_moments(kind), section.fill)
                        put(replay, place, fitted[place], surgery)
                        walk.pass_branch(kind)
                    elif section.repairs and place in repairable and fitted:
                        path = repairable[place]
                        fitted[place] = solve_repair(
                            walk.repair_moments(kind, path), section.repair
                        )
                        repair(replay.layers[index], path, fitted[place], surgery)
                        walk.pass_repaired(kind, path)
                    else:
                        walk.pass_branch(kind)
                planned = walk.finish()
                dense = [after for _, after in seen]
                step()
    finally:
        surgery.undo()
    return fitted


@contextmanager
def standing(
    replay: Replay, fitted: Mapping[Place, Values], repairable: Mapping[Place, str]
) -> Iterator[None]:
    """The replayed model with fitted fills and repairs in place."""
    surgery = Surgery()
    try:
        for place, values in fitted.items():
            if values.keys() & {"repair", "repair_up"}:
                repair(replay.layers[place[0]], repairable[place], values, surgery)
            else:
                put(replay, place, values, surgery)
        yield
    finally:
        surgery.undo()


def put(replay: Replay, place: Place, values: Mapping[str, Tensor], surgery: Surgery) -> None:
    """Put a fitted fill into the replayed model, reversibly."""
    index, kind = place
    family = replay.family
    attends = kind == "attention"
    outputs = family.attention_outputs if attends else family.ffn_outputs
    branch = family.attention if attends else family.ffn
    fill = make_fitted(values, outputs, replay.entry[0])
    put_branch(replay.layers[index], branch, fill, surgery.set)


def make_fitted(values: Mapping[str, Tensor], outputs: int, like: Tensor) -> Fill:
    """A fill module that holds fitted values, in the dtype and on the device of `like`."""
    if not values:
        return Zero(outputs)
    if "mean" in values:
        fill: Fill = Constant(outputs, len(values["mean"]))
        names = {"value": values["mean"]}
    else:
        rank = len(values["down"]) if "down" in values else None
        fill = Linear(outputs, len(values["bias"]), rank)
        names = {"up.weight": values["up"], "up.bias": values["bias"]}
        names |= {"down.weight": values["down"]} if rank else {}
    fill.load_state_dict(names)
    return fill.to(like.device, like.dtype).requires_grad_(False)


def repair(layer: nn.Module, path: str, values: Mapping[str, Tensor], surgery: Surgery) -> None:
    """Add a repair to the output projection at `path` of a layer, reversibly."""
    module: Any = layer.get_submodule(path)
    weight = module.weight.detach()
    full = values.get("repair")
    change = values["repair_up"] @ values["repair_down"] if full is None else full.float()
    change = change.to(weight.device)
    # transformers' Conv1D keeps its weight as [inputs, outputs].
    change = change if isinstance(module, nn.Linear) else change.T
    repaired = (weight.float() + change).to(weight.dtype)
    surgery.set(module, "weight", nn.Parameter(repaired, requires_grad=False))
