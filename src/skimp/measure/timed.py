"""One side of a timed run: an engine that serves requests piece by piece, and the clock on it."""

import gc
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles
from typing import Any

import torch
from torch import Tensor

from skimp.engine import Engine, State
from skimp.engine.runners import cache_tensors
from skimp.measure import cost
from skimp.measure.machine import Machine, synchronize
from skimp.measure.memory import TensorMeter, cache_bytes, resident_bytes
from skimp.models.anatomy import Anatomy
from skimp.models.placement import available_bytes
from skimp.workload import Workload

Serving = Generator[None, None, None]

_TURN = 4  # decode steps between two changes of side
_WARM = 2  # decode steps of the request before: the second shows what a step adds to the cache


@dataclass(frozen=True)
class Side:
    """One side's figures. Times in s, sizes in bytes.

    `tpot_s`: median time of a decode step; where a side's steps may end early, the mean step of the
    median round, of both sides. `tpot_spread`: quartiles of the steps. `layers_left_out`: the share
    of the layers that those steps did not run, None where all run to their end. `tokens_per_s`
    counts the
    whole batch. `weight_bytes`: parameters and buffers the engine's model holds.
    `kv_bytes_per_token`: the cache's storage over the tokens there is room for (over those in it,
    where the cache grows). `peak_bytes`: weights, the cache at the workload's full length and the
    most that passing tensors took; kernels' scratch space is seen on a GPU only. `roofline_share`:
    the bytes of a step over the measured bandwidth, as a share of the step's time.
    """

    prefill_s: float
    tpot_s: float
    tpot_spread: tuple[float, float]
    tokens_per_s: float
    weight_bytes: int
    kv_bytes_per_token: float
    peak_bytes: int
    roofline_share: float
    layers_left_out: float | None = None


@dataclass(frozen=True)
class Decoding:
    """How a side decodes: `path` as `Engine.path` names it, and why it is not native, or None."""

    path: str
    reason: str | None


@dataclass(frozen=True)
class Schedule:
    """What every round does: which contexts are timed, in turns of how many steps.

    `start`: tokens in the cache before the first timed step. `together`: whether both sides'
    caches fit into memory at once. `text`: tokens that prompts are cut from, for plans whose speed
    hangs on what is said; else prompts are drawn at random.
    """

    workload: Workload
    start: int
    turns: tuple[int, ...]
    vocabulary: int
    together: bool
    text: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        workload: Workload,
        steps: int,
        device: torch.device,
        anatomy: Anatomy,
        text: Tensor | None = None,
    ) -> "Schedule":
        """Time at most `steps` steps, the ones in the middle of the workload's new tokens."""
        steps = max(1, min(steps, workload.new))
        turns = (_TURN,) * (steps // _TURN) + ((steps % _TURN,) if steps % _TURN else ())
        both = cost.run_bytes(anatomy, workload) + cost.kv_bytes(
            anatomy, workload.prompt + workload.new, workload.batch
        )
        return cls(
            workload=workload,
            start=workload.prompt + (workload.new - steps) // 2,
            turns=turns,
            vocabulary=anatomy.vocabulary,
            together=both <= available_bytes(device),
            text=text,
        )

    @property
    def window(self) -> Workload:
        """The decode steps that are timed, as a workload of their own."""
        return Workload(self.start, sum(self.turns), self.workload.batch)

    @property
    def warm_up(self) -> tuple[int, ...]:
        """The turns of the request that is not timed: no more steps than there is room for."""
        room = self.workload.prompt + self.workload.new - self.start
        return (1,) * min(_WARM, room)

    def prompt(self, generator: torch.Generator) -> Tensor:
        """Tokens [batch, start]: the prompt and what is read before the timed steps."""
        shape = (self.workload.batch, self.start)
        if self.text is None:
            return torch.randint(self.vocabulary, shape, generator=generator)
        first = torch.randint(len(self.text), (shape[0], 1), generator=generator)
        return self.text[(first + torch.arange(shape[1])) % len(self.text)]


class Timed:
    """An engine, and what was timed and counted on it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.anatomy = engine.anatomy
        self.prefills: list[float] = []
        self.turns: list[list[float]] = []
        self.decoding = Decoding("", None)
        self._weight_bytes = resident_bytes(engine.model)
        self._cached: list[int] = []
        self._kv_bytes_per_token = 0.0
        self._peak = 0
        self._ran: list[tuple[int, bool]] = []

    def warm_up(self, schedule: Schedule, tokens: Tensor) -> None:
        """Make the decode step, and serve a request that is not timed, but weighed."""
        batch, device = schedule.workload.batch, self.engine.device
        reason = self.engine.warm_up(batch)
        self.decoding = Decoding(self.engine.path(batch), reason)
        meter, turns = TensorMeter(device), schedule.warm_up
        with meter:
            for _ in self.serve(schedule, tokens, turns):
                pass
        before, after = self._cached[0], self._cached[-1]
        steps, new = len(turns), schedule.workload.new
        left = schedule.workload.prompt + new - schedule.start - steps
        full = after + max(0, after - before) * left
        self._peak = self._weight_bytes + full + max(0, meter.peak - after)
        for record in (self.prefills, self.turns, self._cached, self._ran):
            record.clear()

    def serve(self, schedule: Schedule, tokens: Tensor, turns: tuple[int, ...]) -> Serving:
        """Serve one request, pausing after the prefill and after each turn of decode steps.

        `tokens` [B, start]: the prompt, and what is read untimed before the first turn.
        """
        engine, work, device = self.engine, schedule.workload, self.engine.device
        prompt, more = tokens[:, : work.prompt], tokens[:, work.prompt :].to(device)
        clock = Clock(device)
        logits, state = engine.prefill(prompt, work.new)
        picked = logits.argmax(-1)
        clock.lap()
        self.prefills += clock.laps()
        yield
        if more.shape[1]:
            picked = engine.extend(state, more).argmax(-1)
        for steps in turns:
            clock = Clock(device)
            for _ in range(steps):
                picked = engine.decode(state, picked).argmax(-1)
                clock.lap()
                if state.exits is not None:
                    self._ran.append((state.exits.ran, state.exits.head))
            self.turns.append(clock.laps())
            held = cache_bytes(cache_tensors(state.cache))
            self._kv_bytes_per_token = held / (work.batch * columns(engine, state))
            self._cached.append(held)
            yield

    @property
    def steps(self) -> list[float]:
        """Seconds of every timed decode step."""
        return [seconds for turn in self.turns for seconds in turn]

    @property
    def leaves(self) -> bool:
        """Whether steps may end early, so that none stands for all."""
        return self.engine.exits is not None

    def rounds(self, turns: int) -> list[float]:
        """The mean step of every round, of so many turns, in s."""
        parts = [self.turns[at : at + turns] for at in range(0, len(self.turns), turns)]
        return [fmean(step for turn in part for step in turn) for part in parts]

    def step_bytes(self, window: Workload) -> float:
        """Bytes of a mean step: of the layers it ran, and of the head where it was read in full."""
        whole = cost.decode_cost(self.anatomy, window).bytes
        if not self._ran:
            return whole
        found = Counter(self._ran)
        return sum(
            count * cost.partial_bytes(self.anatomy, window, layers=ran, head=head)
            for (ran, head), count in found.items()
        ) / len(self._ran)

    def step_share(self, window: Workload, machine: Machine) -> float:
        """Share of a step's time that reading the bytes of all layers must take."""
        least = cost.decode_cost(self.anatomy, window).bytes / machine.bandwidth
        return least / median(self.steps)

    def result(self, window: Workload, machine: Machine, turns: int | None = None) -> Side:
        """`turns`: of a round, where the mean step of rounds counts."""
        tpot = median(self.steps if turns is None else self.rounds(turns))
        layers = len(self.anatomy.layers)
        low, _, high = quantiles(self.steps, n=4)
        return Side(
            prefill_s=median(self.prefills),
            tpot_s=tpot,
            tpot_spread=(low, high),
            tokens_per_s=window.batch / tpot,
            weight_bytes=self._weight_bytes,
            kv_bytes_per_token=self._kv_bytes_per_token,
            peak_bytes=self._peak,
            roofline_share=self.step_share(window, machine),
            layers_left_out=1 - fmean(ran for ran, _ in self._ran) / layers if self._ran else None,
        )


def columns(engine: Engine, state: State) -> int:
    """Tokens of a sequence that a cache has room for; those in it, where it grows."""
    if engine.plain is not None:
        return state.length
    # Rooms may be rounded up, and windows are shorter.
    return max([state.capacity, *(slot.size for slot in state.cache.values())])


class Clock:
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
def no_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running inside a timed step."""
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
