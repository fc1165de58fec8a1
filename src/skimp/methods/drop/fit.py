"""Closed-form fits of what stands in a dropped branch's place.

`mean` is the branch's average output. `linear:RANK` is reduced-rank ridge regression with an
intercept (Izenman, 1975; ridge as in Mukherjee and Zhu, 2011): W = (Cxx + lambda I)^-1 Cxy, then
projected on the leading principal directions of its fitted values. Nothing is trained by gradient.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from skimp.calibration.replay import Replay
from skimp.methods.drop.section import Drop, FillKind
from skimp.models.anatomy import Kind
from skimp.models.carve import Constant, Fill, Linear, Zero, put_branch
from skimp.models.surgery import Surgery
from skimp.progress import SILENT, Progress

RIDGE = 1e-2
Place = tuple[int, Kind]
Values = dict[str, Tensor]


@dataclass
class Moments:
    """Running first and second moments of inputs x [n, d] and targets y [n, d], in float64."""

    count: int = 0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    xy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.float(), y.float()
        self.count += len(x)
        self.x = self.x + x.sum(0, dtype=torch.float64)
        self.y = self.y + y.sum(0, dtype=torch.float64)
        self.xx = self.xx + (x.T @ x).double()
        self.xy = self.xy + (x.T @ y).double()


def solve(moments: Moments, fill: FillKind) -> Values:
    """The fitted tensors of one fill: `mean` [d], or `down` [r, d], `up` [d, r] and `bias` [d]."""
    mean_x = torch.as_tensor(moments.x / moments.count)
    mean_y = torch.as_tensor(moments.y / moments.count)
    if fill.name == "zero":
        return {}
    if fill.name == "mean":
        return {"mean": mean_y.float()}
    cxx = moments.xx / moments.count - mean_x.outer(mean_x)
    cxy = moments.xy / moments.count - mean_x.outer(mean_y)
    ridge = RIDGE * cxx.diagonal().mean().clamp_min(1e-12)
    damped = cxx + ridge * torch.eye(len(mean_x), dtype=cxx.dtype, device=cxx.device)
    weights = torch.linalg.solve(damped, cxy)
    if fill.rank is None:
        return {"up": weights.T.float(), "bias": (mean_y - mean_x @ weights).float()}
    # Eigenvectors come in ascending order, so the last are the directions that matter.
    directions = torch.linalg.eigh(weights.T @ damped @ weights)[1][:, -fill.rank :]
    down = weights @ directions
    return {
        "down": down.T.contiguous().float(),
        "up": directions.contiguous().float(),
        "bias": (mean_y - mean_x @ down @ directions.T).float(),
    }


def make(values: Mapping[str, Tensor], outputs: int, like: Tensor) -> Fill:
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


def fit_alone(replay: Replay, places: Iterable[Place], fill: FillKind) -> dict[Place, Values]:
    """Fit each fill as if its sublayer were the only one left out: one dense pass for all."""
    moments = {place: Moments() for place in places}
    for batch, hidden in enumerate(replay.entry):
        real = replay.batches[batch].real
        for index in range(len(replay.layers)):
            kinds = [kind for layer, kind in moments if layer == index]
            traces, hidden = replay.watch(index, kinds, hidden, batch)
            for kind, trace in traces.items():
                moments[index, kind].add(trace.input[real], trace.output[real])
    return {place: solve(moment, fill) for place, moment in moments.items()}


def fit_in_order(replay: Replay, section: Drop, progress: Progress = SILENT) -> dict[Place, Values]:
    """Fit the fills of a section in running order, each with the earlier ones in place.

    The target is what brings the residual stream back to the dense one after the branch: the dense
    state behind the branch minus the planned state before it. So each fill also makes good what
    was lost before it.
    """
    fitted: dict[Place, Values] = {}
    surgery = Surgery()
    dense, planned = list(replay.entry), list(replay.entry)
    last = max(layer for layer, _ in section.sublayers)
    try:
        with progress.task(f"fitting {section.fill} fills", last + 1) as step:
            for index in range(last + 1):
                kinds: list[Kind] = [kind for layer, kind in section.sublayers if layer == index]
                seen = [replay.watch(index, kinds, s, b) for b, s in enumerate(dense)]
                for kind in kinds:
                    moments = Moments()
                    for batch, state in enumerate(planned):
                        trace = replay.watch(index, [kind], state, batch)[0][kind]
                        goal = seen[batch][0][kind]
                        target = goal.output + (goal.state - trace.state)
                        real = replay.batches[batch].real
                        moments.add(trace.input[real], target[real])
                    fitted[index, kind] = solve(moments, section.fill)
                    put(replay, (index, kind), fitted[index, kind], surgery)
                planned = [replay.layer(index, s, b) for b, s in enumerate(planned)]
                dense = [after for _, after in seen]
                step()
    finally:
        surgery.undo()
    return fitted


@contextmanager
def standing(replay: Replay, section: Drop, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The replayed model with a section's fills in place, given the plan's fitted values."""
    surgery = Surgery()
    try:
        for layer, kind in section.sublayers:
            names = value_names(section, layer, kind)
            own = {name.rpartition(".")[2]: values[name] for name in names}
            put(replay, (layer, kind), own, surgery)
        yield
    finally:
        surgery.undo()


def value_names(section: Drop, layer: int, kind: Kind) -> tuple[str, ...]:
    """Names of the fitted tensors of one dropped sublayer, in the plan's values."""
    names = {"zero": (), "mean": ("mean",), "linear": ("down", "up", "bias")}[section.fill.name]
    if section.fill.name == "linear" and section.fill.rank is None:
        names = ("up", "bias")
    return tuple(f"drop.{kind}.{layer}.{name}" for name in names)


def put(replay: Replay, place: Place, values: Mapping[str, Tensor], surgery: Surgery) -> None:
    """Put a fitted fill into the replayed model, reversibly."""
    index, kind = place
    outputs = replay.family.attention_outputs if kind == "attention" else 1
    branch = replay.family.attention if kind == "attention" else replay.family.ffn
    fill = make(values, outputs, replay.entry[0])
    put_branch(replay.layers[index], branch, fill, surgery.set)
