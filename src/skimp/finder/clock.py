"""Time plans beside the dense model, and find a machine's prices by that."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from skimp import kernels
from skimp.engine import Engine
from skimp.finder.prices import Measured, references
from skimp.measure import machine
from skimp.measure.speed import compare_decoding
from skimp.measure.statistics import Interval
from skimp.measure.timed import Timed, no_collector
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.models.cache import root, write_json
from skimp.plan import Plan
from skimp.progress import SILENT, Progress
from skimp.workload import Workload


class Clock:
    """A dense engine that plans are timed beside, in turns."""

    def __init__(self, model: nn.Module, workload: Workload, seed: int = 0) -> None:
        self._model, self._workload, self._seed = model, workload, seed
        self._dense = Timed(Engine(model))

    def speedup(self, plan: Plan) -> Interval:
        """The decode speedup of a fitted plan: median of turns and its 95% interval."""
        planned = Timed(Engine(self._model, plan))
        with torch.inference_mode(), no_collector():
            return compare_decoding(self._dense, planned, self._workload, seed=self._seed)


def measure_prices(
    model: nn.Module,
    workload: Workload,
    *,
    thin: bool,
    progress: Progress = SILENT,
) -> Measured:
    """The machine's prices for a model at a workload; timed once, then read from the cache folder.

    That they are kept is what makes one seed give one plan. `thin`: whether FFs can be thinned.
    """
    anatomy = Anatomy.of(model)
    path = root() / "prices" / f"{_key(model, anatomy, workload)}.json"
    if path.exists():
        try:
            return Measured(anatomy, json.loads(path.read_text())["prices"])
        except (OSError, ValueError, KeyError):
            pass  # damaged: timed anew
    plans = references(anatomy, thin)
    clock = Clock(model, workload)
    timings: list[tuple[Anatomy, float]] = []
    with progress.task("timing what sublayers cost here", len(plans)) as step:
        for plan in plans:
            timings.append((reduce(plan, anatomy), 1 / clock.speedup(plan).estimate))
            step()
    found = Measured.solve(anatomy, workload, timings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"prices": dict(found.prices), "timings": [took for _, took in timings]})
    except OSError:
        pass  # a read-only home costs a minute a run, not the run
    return found


def _key(model: nn.Module, anatomy: Anatomy, workload: Workload) -> str:
    like = next(model.parameters())
    words: Sequence[Any] = (
        machine.identity(),
        str(like.dtype),
        str(like.device),
        kernels.threads(),
        anatomy.fingerprint,
        str(workload),
    )
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:24]
