"""Fit what stands in dropped branches' places, and repair what remains, on calibration text.

Nothing is trained by gradient: every fit is a closed form (:mod:`.closed_form`). One walk through
the layers fits both, in running order (:mod:`skimp.methods.in_order`).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from skimp.calibration.replay import Replay
from skimp.methods.drop.closed_form import Values, solve_fill, solve_repair
from skimp.methods.drop.section import Drop, FillKind
from skimp.methods.in_order import Place, Task
from skimp.methods.moments import Moments
from skimp.methods.walk import Walk
from skimp.models.anatomy import KINDS, Kind
from skimp.models.carve import Constant, Fill, Linear, Zero, put_branch
from skimp.models.surgery import Surgery
from skimp.progress import SILENT, Progress


def fit_alone(
    replay: Replay, places: Iterable[Place], fill: FillKind, progress: Progress = SILENT
) -> dict[Place, Values]:
    """Fit each fill as if its sublayer were the only one left out: one dense pass for all."""
    wanted = set(places)
    fitted: dict[Place, Values] = {}
    states = list(replay.entry)
    with progress.task(f"fitting {fill} to each sublayer", len(replay.layers)) as step:
        for index in range(len(replay.layers)):
            kinds: list[Kind] = [kind for kind in KINDS if (index, kind) in wanted]
            moments: dict[Kind, Moments] = {kind: Moments() for kind in kinds}
            for batch, hidden in enumerate(states):
                real = replay.batches[batch].real
                traces, states[batch] = replay.watch(index, moments, hidden, batch)
                for kind, trace in traces.items():
                    moments[kind].add(trace.input[real], trace.output[real])
            for kind, each in moments.items():
                fitted[index, kind] = solve_fill(each, fill)
            step()
    return fitted


@dataclass(frozen=True)
class FitFill:
    """Fit what stands in the place of a dropped branch."""

    kind: Kind
    fill: FillKind
    corrects: bool = False

    def fit(self, walk: Walk, layer: nn.Module, surgery: Surgery) -> Values:
        values = solve_fill(walk.fill_moments(self.kind), self.fill)
        put(walk.replay, (walk.index, self.kind), values, surgery)
        walk.pass_branch(self.kind)
        return values


@dataclass(frozen=True)
class FitRepair:
    """Fit a repair, of a rank (None: no limit), of the output projection at `path` of a layer."""

    kind: Kind
    path: str
    rank: int | None
    corrects: bool = True

    def fit(self, walk: Walk, layer: nn.Module, surgery: Surgery) -> Values:
        values = solve_repair(walk.repair_moments(self.kind, self.path), self.rank)
        repair(layer, self.path, values, surgery)
        walk.pass_repaired(self.kind, self.path)
        return values


def tasks_of(section: Drop, repairable: Mapping[Place, str]) -> dict[Place, Task]:
    """A section's fills and, if it asks for them, repairs of the sublayers behind the first.

    `repairable` names output projections, relative to their layer.
    """
    fills: dict[Place, Task] = {
        (layer, kind): FitFill(kind, section.fill) for layer, kind in section.sublayers
    }
    repairs: dict[Place, Task] = {
        place: FitRepair(place[1], path, section.repair) for place, path in repairable.items()
    }
    return fills | repairs


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
