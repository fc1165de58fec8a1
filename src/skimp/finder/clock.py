"""Time plans beside the dense model, and find a machine's prices by that."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skimp import kernels
from skimp.engine import Engine
from skimp.finder.prices import Measured, references
from skimp.measure import machine
from skimp.measure.speed import decoding_ratios
from skimp.measure.statistics import Interval, median_interval
from skimp.measure.timed import Timed, no_collector
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.models.cache import root, write_json
from skimp.plan import Plan
from skimp.progress import SILENT, Progress
from skimp.workload import Workload

_MOST_TIMINGS = 6


class Clock:
    """A dense engine that plans are timed beside, in turns."""

    def __init__(
        self, model: nn.Module, workload: Workload, seed: int = 0, text: Tensor | None = None
    ) -> None:
        """`text`: tokens that prompts are cut from where plans let tokens leave early."""
        self._model, self._workload, self._seed, self._text = model, workload, seed, text
        self._dense = Timed(Engine(model))
        self.anatomy = self._dense.anatomy

    def speedup(self, plan: Plan, *, within: float | None = None) -> Interval:
        """The decode speedup of a fitted plan: median over turns, and its 95% interval.

        Args:
            within: turns are added, of other prompts, until the interval reaches no further than
                this share of the median either way, or a few times as many have been taken.
        """
        planned = Timed(Engine(self._model, plan))
        ratios = self._ratios(planned, 0)
        found, taken = median_interval(ratios), 1
        while within and taken < _MOST_TIMINGS and not precise(found.estimate, found.pair, within):
            ratios += self._ratios(planned, taken)
            found, taken = median_interval(ratios), taken + 1
        return found

    def _ratios(self, planned: Timed, number: int) -> list[float]:
        with torch.inference_mode(), no_collector():
            return decoding_ratios(
                self._dense, planned, self._workload, seed=self._seed + number, text=self._text
            )


def precise(speed: float, interval: tuple[float, float], within: float) -> bool:
    """Whether a speed is known to `within` a share of itself, either way."""
    low, high = interval
    return max(high - speed, speed - low) <= within * speed


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

    def solved() -> dict[str, Any]:
        plans = references(anatomy, thin)
        clock = Clock(model, workload)
        timings: list[tuple[Anatomy, float]] = []
        with progress.task("timing what sublayers cost here", len(plans)) as step:
            for plan in plans:
                timings.append((reduce(plan, anatomy), 1 / clock.speedup(plan).estimate))
                step()
        found = Measured.solve(anatomy, workload, timings)
        return {"prices": dict(found.prices), "timings": [took for _, took in timings]}

    return Measured(anatomy, kept("prices", model, workload, solved)["prices"])


def kept(
    name: str, model: nn.Module, workload: Workload, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `make` times on this machine, plain data with an entry `name`; read from the cache
    folder if it was timed before."""
    suffix = "" if name == "prices" else f"-{name}"
    path = root() / "prices" / f"{_key(model, Anatomy.of(model), workload)}{suffix}.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
            if name in found:
                return found
        except (OSError, ValueError, TypeError):
            pass  # damaged: timed anew
    found = json.loads(json.dumps(make()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
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
