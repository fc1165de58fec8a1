"""How fast an engine reads a prompt and writes an answer, dense and planned in one run.

What makes the numbers worth trusting:

* Both sides take turns (A B B A …) on the same weights, prompt and machine, a few decode steps at a
  time, each with its own cache alive; so whatever slows the machine down slows both.
* Ratios are taken between neighbouring turns, and their median is reported with its 95% interval,
  which assumes no distribution. Where a machine has slow and fast minutes, the ratio of the two
  sides' medians is many times noisier: the medians fall into different minutes. A turn's decode
  time is the median over its steps: other programs add time now and then, while a minimum would
  hide work that a plan does on some steps only.
* Every decode step passes the cache on, at the contexts of the workload; if fewer steps are timed
  than the workload has, they are the ones in the middle, and the tokens before them are read
  untimed.
* Weights and cache are counted on the tensors that are there.
* What was foretold from bytes, FLOPs and the machine's rates stands beside what was measured.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from skimp import kernels
from skimp.engine import Engine
from skimp.errors import WorkloadError
from skimp.measure import cost, oracle
from skimp.measure.machine import Machine, profile
from skimp.measure.memory import check_workload
from skimp.measure.statistics import median_interval
from skimp.measure.timed import Decoding, Schedule, Side, Timed, no_collector
from skimp.plan import Plan
from skimp.progress import SILENT, Progress
from skimp.workload import Workload

# With fewer pairs not even their whole range is a 95% interval of the median.
_LEAST_ROUNDS = 6
_LEAST_STEPS = 32  # of a round whose mean step counts
# A bound that allows less than this much gain is none to take shares of.
_LEAST_GAIN = 0.005


@dataclass(frozen=True)
class Speedup:
    """Dense time over planned time: medians of the paired ratios, and their 95% intervals."""

    prefill: float
    prefill_interval: tuple[float, float]
    decode: float
    decode_interval: tuple[float, float]


@dataclass(frozen=True)
class Times:
    """A prefill of the whole batch and a decode step, in s."""

    prefill_s: float
    tpot_s: float


@dataclass(frozen=True)
class Ratios:
    """Dense time over planned time."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Predicted:
    """What :mod:`skimp.measure.oracle` foretells of what was timed: the same prompt and steps."""

    dense: Times
    planned: Times | None
    speedup: Ratios | None

    @classmethod
    def of(cls, dense: Times, planned: Times | None) -> "Predicted":
        if planned is None:
            return cls(dense, None, None)
        ratios = Ratios(dense.prefill_s / planned.prefill_s, dense.tpot_s / planned.tpot_s)
        return cls(dense, planned, ratios)


@dataclass(frozen=True)
class Decoders:
    """How each side decodes, and the native kernels' number of threads."""

    dense: Decoding
    planned: Decoding | None
    threads: int


@dataclass(frozen=True)
class Collected:
    """How much of its bound a speedup came to.

    `gain`: speedup − 1 over bound − 1, None if the bound allows no gain to speak of. `share`:
    speedup over bound.
    """

    gain: float | None
    share: float

    @classmethod
    def of(cls, speedup: float, bound: float) -> "Collected":
        gain = (speedup - 1) / (bound - 1) if bound - 1 > _LEAST_GAIN else None
        return cls(gain, speedup / bound)


@dataclass(frozen=True)
class SpeedComparison:
    """A timed run. What compares two sides is None if only the dense model ran.

    `byte_bound`: decoding's speedup if its time went with bytes (where tokens left early, with
    those of the steps as they were, probes not counted); `compute_bound`: prefill's if its time
    went with FLOPs; `contexts`: cached tokens at the first and last decode step timed.
    """

    workload: Workload
    dense: Side
    planned: Side | None
    speedup: Speedup | None
    byte_bound: float | None
    compute_bound: float | None
    predicted: Predicted
    engine: Decoders
    rounds: int
    contexts: tuple[int, int]
    machine: Machine = field(repr=False)

    @property
    def faster(self) -> bool:
        """Whether the whole interval says that the planned model decodes faster."""
        return self.speedup is not None and self.speedup.decode_interval[0] > 1

    @property
    def collected(self) -> dict[str, Collected] | None:
        """`{prefill, decode}`: how much of the bound of each was collected."""
        if self.speedup is None or self.byte_bound is None or self.compute_bound is None:
            return None
        return {
            "prefill": Collected.of(self.speedup.prefill, self.compute_bound),
            "decode": Collected.of(self.speedup.decode, self.byte_bound),
        }

    def as_dict(self) -> dict[str, Any]:
        """The form that JSON files hold."""
        sides = {"dense": self.dense, "planned": self.planned, "speedup": self.speedup}
        collected = self.collected
        return {
            "workload": str(self.workload),
            **{name: side and asdict(side) for name, side in sides.items()},
            "predicted": asdict(self.predicted),
            "byte_bound": self.planned and {"decode": self.byte_bound},
            "compute_bound": self.planned and {"prefill": self.compute_bound},
            "collected": collected and {name: asdict(part) for name, part in collected.items()},
            "faster": self.faster,
            "engine": asdict(self.engine),
            "rounds": self.rounds,
            "contexts": list(self.contexts),
        }


def compare_speed(
    model: nn.Module,
    plan: Plan | None,
    workload: Workload,
    *,
    rounds: int = _LEAST_ROUNDS,
    steps: int = 32,
    seed: int = 0,
    text: Tensor | None = None,
    progress: Progress = SILENT,
    machine: Machine | None = None,
) -> SpeedComparison:
    """Time prefill and decode of `model` as it is and with a plan, each on an engine.

    Both engines share the model's weights; the model itself is not touched.

    Args:
        model: a dense transformers causal language model in eval mode.
        plan: fitted if its fills need values. None: the dense model alone is timed.
        rounds: prefills of each side, at least 6.
        steps: decode steps of each side and round at most.
        seed: of the random prompts; both sides read the same ones.
        text: tokens that prompts are cut from instead, since tokens leave early by what is said.
        machine: what roofline and prediction are drawn from; measured if None.

    Raises:
        WorkloadError: too few rounds, a context longer than the model's, or a batch that does not
            fit into memory.
        PlanError: the plan does not fit the model.
        SkimpError: the machine was measured at another size of numbers than the model's.
    """
    if rounds < _LEAST_ROUNDS:
        raise WorkloadError(f"rounds: {rounds} pairs say little; use at least {_LEAST_ROUNDS}.")
    dense = Timed(Engine(model))
    like = next(model.parameters())
    check_workload(dense.anatomy, workload, like.device)
    planned = None if plan is None else Timed(Engine(model, plan))
    sides = [dense] if planned is None else [dense, planned]
    schedule = Schedule.of(workload, steps, like.device, dense.anatomy, text)
    _time(sides, schedule, rounds, seed, progress)

    window = schedule.window
    measured = machine or profile(like.device, like.dtype)
    if machine is None and max(side.step_share(window, measured) for side in sides) > 1:
        # Faster than the yardstick: it was taken while the machine was busy.
        measured = profile(like.device, like.dtype, fresh=True)
    # Where steps may end early, none stands for all.
    turns = len(schedule.turns) if any(side.leaves for side in sides) else None
    foretold = [_foretold(side, schedule, measured) for side in sides]
    whole = (dense.anatomy, planned.anatomy, workload) if planned else None
    return SpeedComparison(
        workload=workload,
        dense=dense.result(window, measured, turns),
        planned=planned.result(window, measured, turns) if planned else None,
        speedup=_speedup(dense, planned, turns) if planned else None,
        byte_bound=_byte_bound(dense, planned, workload) if planned else None,
        compute_bound=cost.compute_bound(*whole) if whole else None,
        predicted=Predicted.of(foretold[0], foretold[1] if planned else None),
        engine=Decoders(dense.decoding, planned and planned.decoding, kernels.threads()),
        rounds=rounds,
        contexts=(window.prompt, window.prompt + window.new - 1),
        machine=measured,
    )


def decoding_ratios(
    dense: Timed,
    planned: Timed,
    workload: Workload,
    *,
    steps: int = 96,
    seed: int = 0,
    text: Tensor | None = None,
) -> list[float]:
    """Dense over planned time of decode steps alone, pair by pair of neighbouring turns.

    One prompt is read by each side, so this takes a fraction of :func:`compare_speed`; what it says
    of a plan hangs on one prompt. `dense` may serve for many plans. Where tokens leave early, some
    prompts are read instead, cut from `text`, and what is paired is the mean step of each.

    Raises:
        WorkloadError: a workload of fewer than 24 new tokens, of which too few turns could be made.
    """
    if workload.new < _LEAST_ROUNDS * 4:
        raise WorkloadError(
            f"workload: {workload.new} new tokens are too few to time; use at least "
            f"{_LEAST_ROUNDS * 4}."
        )
    like = next(dense.engine.model.parameters())
    rounds = _LEAST_ROUNDS if planned.leaves else 1
    steps = max(steps // rounds, _LEAST_STEPS) if planned.leaves else steps
    schedule = Schedule.of(
        workload, steps, like.device, dense.anatomy, text if planned.leaves else None
    )
    sides = [dense, planned]
    for side in sides:
        side.prefills.clear()
        side.turns.clear()
    _time(sides, schedule, rounds, seed, SILENT)
    if planned.leaves:
        turns = len(schedule.turns)
        means = zip(dense.rounds(turns), planned.rounds(turns), strict=True)
        return [before / after for before, after in means]
    pairs = zip(dense.turns, planned.turns, strict=True)
    return [median(before) / median(after) for before, after in pairs]


def _time(
    sides: list[Timed], schedule: Schedule, rounds: int, seed: int, progress: Progress
) -> None:
    """Warm every side up, then let them take turns."""
    turns = len(sides) * (1 + rounds * (1 + len(schedule.turns)))
    label = f"speed {schedule.workload}"
    with progress.task(label, turns) as step, torch.inference_mode(), no_collector():
        prompts = torch.Generator().manual_seed(seed)
        for side in sides:
            side.warm_up(schedule, schedule.prompt(prompts))
            step()
        for index in range(rounds):
            _round(sides, schedule, schedule.prompt(prompts), index, step)


def _round(
    sides: list[Timed], schedule: Schedule, tokens: Tensor, index: int, step: Callable[[], None]
) -> None:
    """One request a side, in turns; one after the other if both caches do not fit together."""
    requests = [side.serve(schedule, tokens, schedule.turns) for side in sides]
    turns = 1 + len(schedule.turns)
    if schedule.together:
        order = [request for n in range(turns) for request in requests[:: _direction(index + n)]]
    else:
        order = [request for request in requests[:: _direction(index)] for _ in range(turns)]
    for position, request in enumerate(order):
        next(request)
        if not schedule.together and position % turns == turns - 1:
            request.close()  # lets go of its cache
        step()


def _direction(index: int) -> int:
    return -1 if index % 2 else 1


def _byte_bound(dense: Timed, planned: Timed, workload: Workload) -> float:
    """Of the steps as they were where they ended early; what probes read counts as nothing."""
    return dense.step_bytes(workload) / planned.step_bytes(workload)


def _foretold(side: Timed, schedule: Schedule, machine: Machine) -> Times:
    """The oracle's times of what was timed on a side."""
    # The oracle assumes that torch launches every operation; a native step launches none.
    overheads = oracle.Overheads() if side.decoding.path == "native" else None
    prefill = oracle.predict(side.anatomy, schedule.workload, machine)
    decode = oracle.predict(side.anatomy, schedule.window, machine, decode=overheads)
    whole = cost.decode_cost(side.anatomy, schedule.window).bytes
    return Times(prefill.prefill_s, decode.tpot_s * side.step_bytes(schedule.window) / whole)


def _speedup(dense: Timed, planned: Timed, turns: int | None) -> Speedup:
    """Paired by turn, or by round where that has so many `turns`."""
    decode = [
        [median(turn) for turn in side.turns] if turns is None else side.rounds(turns)
        for side in (dense, planned)
    ]
    pairs = {"prefill": (dense.prefills, planned.prefills), "decode": decode}
    found: dict[str, Any] = {}
    for name, (before, after) in pairs.items():
        ratio = median_interval([a / b for a, b in zip(before, after, strict=True)])
        found[name], found[f"{name}_interval"] = ratio.estimate, ratio.pair
    return Speedup(**found)
