"""How fast a model reads a prompt and writes an answer, dense and planned in one run.

What makes the numbers worth trusting:

* Both sides take turns (A B B A …) on the same model, prompt and machine, a few decode steps at a
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
"""

import gc
import inspect
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from skimp.errors import WorkloadError
from skimp.measure import cost
from skimp.measure.machine import Machine, profile, synchronize
from skimp.measure.memory import (
    TensorMeter,
    available_bytes,
    cache_bytes,
    check_workload,
    resident_bytes,
)
from skimp.measure.statistics import median_interval
from skimp.models.anatomy import Anatomy
from skimp.progress import SILENT, Progress
from skimp.workload import Workload

Switch = Callable[[], AbstractContextManager[Any]]
_Request = Generator[None, None, None]

# With fewer pairs not even their whole range is a 95% interval of the median.
_LEAST_ROUNDS = 6
_TURN = 4  # decode steps between two changes of side


@dataclass(frozen=True)
class Side:
    """One side's figures. Times in s, sizes in bytes.

    `tpot_s`: median time of a decode step, `tpot_spread` its quartiles. `tokens_per_s` counts the
    whole batch. `weight_bytes`: parameters and buffers the model holds. `kv_bytes_per_token`: the
    cache's storage after the run over the tokens in it. `peak_bytes`: weights, the cache at the
    workload's full length (its measured growth continued) and the most that passing tensors took;
    kernels' scratch space is seen on a GPU only. `roofline_share`: the bytes of a step over the
    measured bandwidth, as a share of the step's time.
    """

    prefill_s: float
    tpot_s: float
    tpot_spread: tuple[float, float]
    tokens_per_s: float
    weight_bytes: int
    kv_bytes_per_token: float
    peak_bytes: int
    roofline_share: float


@dataclass(frozen=True)
class Speedup:
    """Dense time over planned time: medians of the paired ratios, and their 95% intervals."""

    prefill: float
    prefill_interval: tuple[float, float]
    decode: float
    decode_interval: tuple[float, float]


@dataclass(frozen=True)
class SpeedComparison:
    """A timed run. What compares two sides is None if only the dense model ran.

    `byte_bound`: decoding's speedup if its time went with bytes; `compute_bound`: prefill's if its
    time went with FLOPs; `contexts`: cached tokens at the first and last decode step timed.
    """

    workload: Workload
    dense: Side
    planned: Side | None
    speedup: Speedup | None
    byte_bound: float | None
    compute_bound: float | None
    rounds: int
    contexts: tuple[int, int]
    machine: Machine = field(repr=False)

    @property
    def faster(self) -> bool:
        """Whether the whole interval says that the planned model decodes faster."""
        return self.speedup is not None and self.speedup.decode_interval[0] > 1

    def as_dict(self) -> dict[str, Any]:
        """The form that JSON files hold."""
        sides = {"dense": self.dense, "planned": self.planned, "speedup": self.speedup}
        return {
            "workload": str(self.workload),
            **{name: side and asdict(side) for name, side in sides.items()},
            "byte_bound": self.planned and {"decode": self.byte_bound},
            "compute_bound": self.planned and {"prefill": self.compute_bound},
            "faster": self.faster,
            "rounds": self.rounds,
            "contexts": list(self.contexts),
        }


def compare_speed(
    model: nn.Module,
    planned: Switch | None,
    workload: Workload,
    *,
    rounds: int = _LEAST_ROUNDS,
    steps: int = 32,
    seed: int = 0,
    progress: Progress = SILENT,
    machine: Machine | None = None,
    anatomies: tuple[Anatomy, Anatomy] | None = None,
) -> SpeedComparison:
    """Time prefill and decode of `model` as it is and with a plan on it.

    Args:
        model: a dense transformers causal language model in eval mode.
        planned: makes the context in which the plan is on the model; entered many times, untimed.
            None: the dense model alone is timed.
        rounds: prefills of each side, at least 6.
        steps: decode steps of each side and round at most.
        seed: of the random prompts; both sides read the same ones.
        machine: what the roofline is drawn from; measured if None.
        anatomies: of the dense and the planned model; read off the model if None. Needed for plans
            that leave modules as they are but read only part of them.

    Raises:
        WorkloadError: too few rounds, a context longer than the model's, or a batch that does not
            fit into memory.
    """
    if rounds < _LEAST_ROUNDS:
        raise WorkloadError(f"rounds: {rounds} pairs say little; use at least {_LEAST_ROUNDS}.")
    like = next(model.parameters())
    known = anatomies or (None, None)
    sides = [_Timed(model, nullcontext, known[0])]
    check_workload(sides[0].anatomy, workload, like.device)
    if planned is not None:
        sides.append(_Timed(model, planned, known[1]))
    run = _Run.plan(workload, max(1, steps), like.device, sides[0].anatomy)

    label = f"speed {workload}"
    turns = len(sides) * (1 + rounds * (1 + len(run.turns)))
    with progress.task(label, turns) as step, torch.inference_mode(), _no_collector():
        prompts = torch.Generator().manual_seed(seed)
        for side in sides:
            side.warm_up(run, run.prompt(prompts))
            step()
        for index in range(rounds):
            _round(sides, run, run.prompt(prompts), index, step)

    dense, *rest = sides
    window = Workload(run.start, run.steps, workload.batch)
    measured = machine or profile(like.device, like.dtype)
    if machine is None and max(side.step_share(window, measured) for side in sides) > 1:
        # Faster than the yardstick: it was taken while the machine was busy.
        measured = profile(like.device, like.dtype, fresh=True)
    whole = (dense.anatomy, rest[0].anatomy, workload) if rest else None
    return SpeedComparison(
        workload=workload,
        dense=dense.result(window, measured),
        planned=rest[0].result(window, measured) if rest else None,
        speedup=_speedup(dense, rest[0]) if rest else None,
        byte_bound=cost.byte_bound(*whole) if whole else None,
        compute_bound=cost.compute_bound(*whole) if whole else None,
        rounds=rounds,
        contexts=(run.start, run.start + run.steps - 1),
        machine=measured,
    )


@dataclass(frozen=True)
class _Run:
    """What every round does: which contexts are timed, in turns of how many steps."""

    workload: Workload
    start: int
    turns: tuple[int, ...]
    device: torch.device
    vocabulary: int
    together: bool

    @classmethod
    def plan(cls, workload: Workload, steps: int, device: torch.device, anatomy: Anatomy) -> "_Run":
        steps = min(steps, workload.new)
        turns = (_TURN,) * (steps // _TURN) + ((steps % _TURN,) if steps % _TURN else ())
        both = cost.run_bytes(anatomy, workload) + cost.kv_bytes(
            anatomy, workload.prompt + workload.new, workload.batch
        )
        return cls(
            workload=workload,
            start=workload.prompt + (workload.new - steps) // 2,
            turns=turns,
            device=device,
            vocabulary=anatomy.vocabulary,
            together=both <= available_bytes(device),
        )

    @property
    def steps(self) -> int:
        return sum(self.turns)

    def prompt(self, generator: torch.Generator) -> Tensor:
        """Random tokens [batch, start]: the prompt and what is read before the timed steps."""
        shape = (self.workload.batch, self.start)
        return torch.randint(self.vocabulary, shape, generator=generator).to(self.device)


class _Timed:
    """One side: how to put it on, and what was timed and counted on it."""

    def __init__(self, model: nn.Module, switch: Switch, anatomy: Anatomy | None) -> None:
        self.model = model
        self.switch = switch
        self.prefills: list[float] = []
        self.turns: list[list[float]] = []
        self.cached: list[int] = []
        with switch():
            self.anatomy = anatomy or Anatomy.of(model)
            self.weight_bytes = resident_bytes(model)
        self._peak = 0

    def warm_up(self, run: _Run, tokens: Tensor) -> None:
        """A request that is not timed, but weighed."""
        meter = TensorMeter(run.device)
        with self.switch(), meter:
            for _ in self.request(run, tokens, (1, 1)):
                pass
        before, after = self.cached
        left = run.workload.prompt + run.workload.new - run.start - 2
        full = after + max(0, after - before) * max(0, left)
        self._peak = self.weight_bytes + full + max(0, meter.peak - after)
        for record in (self.prefills, self.turns, self.cached):
            record.clear()

    def request(self, run: _Run, tokens: Tensor, turns: tuple[int, ...]) -> _Request:
        """Serve one request, pausing after the prefill and after each turn of decode steps.

        The caller has this side on the model whenever it resumes the request.
        """
        prompt, more = tokens[:, : run.workload.prompt], tokens[:, run.workload.prompt :]
        clock = _Clock(run.device)
        token, cache = self._forward(prompt, None)
        clock.lap()
        self.prefills += clock.laps()
        yield
        if more.shape[1]:
            token, cache = self._forward(more, cache)
        for steps in turns:
            clock = _Clock(run.device)
            for _ in range(steps):
                token, cache = self._forward(token, cache)
                clock.lap()
            self.turns.append(clock.laps())
            self.cached.append(cache_bytes(cache))
            yield

    def _forward(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Greedy next tokens [batch, 1] and the cache that the model made or grew."""
        last = {"logits_to_keep": 1} if _keeps_logits(self.model) else {}
        output = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **last)
        return output.logits[:, -1:].argmax(-1), output.past_key_values

    def step_share(self, window: Workload, machine: Machine) -> float:
        """Share of a step's time that reading its bytes must take."""
        least = cost.decode_cost(self.anatomy, window).bytes / machine.bandwidth
        return least / median(_flat(self.turns))

    def result(self, window: Workload, machine: Machine) -> Side:
        times = _flat(self.turns)
        tpot = median(times)
        low, _, high = quantiles(times, n=4)
        return Side(
            prefill_s=median(self.prefills),
            tpot_s=tpot,
            tpot_spread=(low, high),
            tokens_per_s=window.batch / tpot,
            weight_bytes=self.weight_bytes,
            kv_bytes_per_token=self.cached[-1] / (window.batch * (window.prompt + window.new)),
            peak_bytes=self._peak,
            roofline_share=self.step_share(window, machine),
        )


def _round(
    sides: list[_Timed], run: _Run, tokens: Tensor, index: int, step: Callable[[], None]
) -> None:
    """One request a side, in turns; one after the other if both caches do not fit together."""
    requests = [side.request(run, tokens, run.turns) for side in sides]
    turns = 1 + len(run.turns)
    order = list(enumerate(sides))
    if run.together:
        schedule = [turn for n in range(turns) for turn in order[:: _direction(index + n)]]
    else:
        schedule = [turn for turn in order[:: _direction(index)] for _ in range(turns)]
    for position, (which, side) in enumerate(schedule):
        with side.switch():
            next(requests[which])
        if not run.together and position % turns == turns - 1:
            requests[which].close()  # lets go of its cache
        step()


def _direction(index: int) -> int:
    return -1 if index % 2 else 1


def _speedup(dense: _Timed, planned: _Timed) -> Speedup:
    pairs = {
        "prefill": (dense.prefills, planned.prefills),
        "decode": ([median(t) for t in dense.turns], [median(t) for t in planned.turns]),
    }
    found: dict[str, Any] = {}
    for name, (before, after) in pairs.items():
        ratio = median_interval([a / b for a, b in zip(before, after, strict=True)])
        found[name], found[f"{name}_interval"] = ratio.estimate, ratio.pair
    return Speedup(**found)


def _flat(turns: list[list[float]]) -> list[float]:
    return [seconds for turn in turns for seconds in turn]


def _keeps_logits(model: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


class _Clock:
    """Time between laps. On a GPU the laps are events in its queue, so that timing a step does not
    make the next one wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        synchronize(device)
        self.lap()

    def lap(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            synchronize(self._device)
            self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds of each lap so far."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device.type == "cuda":
            synchronize(self._device)
            return [start.elapsed_time(end) / 1000 for start, end in pairs]
        return [end - start for start, end in pairs]


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a timed step."""
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
