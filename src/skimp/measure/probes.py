"""How fast this machine reads, multiplies and launches: several ways, several tries, the best kept.

Nothing can make a try faster than the machine is, and anything else that runs can make it slower.
So a rate is the best of all ways and tries, and how far the next best try stays behind, together
with what other programs took of the processor meanwhile, says whether to believe it.
"""

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from skimp.measure.rates import QUIET, Rate, Rates, prefill_rate

Way = Callable[[], Any]
Weights = Iterator[Tensor]

_LAUNCHES = 200  # in a row: one alone is too short for the clock
_NATIVE_ROWS = 16  # the native kernels multiply at most so many rows
_LEAST_TIMING = 1e-3  # s; calls are repeated until a timing takes this long
_HOPELESS = 2.0  # in one try, ways this many times slower than the best have one chance only


@dataclass(frozen=True)
class Effort:
    """What is read and multiplied.

    `buffer`: bytes of weights, far more than the processor's caches hold; they are cut into
    matrices of the shape `weight` [outputs, inputs]. `rows`: how many tokens are multiplied with
    one. `seconds`: of each rate and try, at least. `longest`: s a product may take; row counts
    that would take longer are not tried.
    """

    buffer: int
    weight: tuple[int, int]
    rows: tuple[int, ...]
    seconds: float
    longest: float = 0.25


CPU = Effort(512 << 20, (5632, 2048), (1, 4, 16, 64, 256, 1024), 0.1)
GPU = Effort(2 << 30, (14336, 4096), (1, 4, 16, 64, 256, 1024, 4096), 0.05)


def measure(
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
    *,
    tries: int,
    step: Callable[[], None] = lambda: None,
) -> Rates:
    """Measure with so many threads, which are restored; `step` is called after each try.

    The tries of one rate lie apart in time, so that a busy moment does not spoil all of them.
    """
    effort = CPU if device.type == "cpu" else GPU
    with _threads(threads), torch.inference_mode():
        probes = _Probes.of(device, dtype, effort)
        bystanders = _Bystanders()
        found = []
        for _ in range(tries):
            found.append(probes.rates())
            step()
        busy = bystanders.share()
    quiet = busy <= QUIET
    return Rates(
        read=Rate.of([tried[0] for tried in found], quiet=quiet),
        matmul=Rate.of([prefill_rate(tried[2]) for tried in found], quiet=quiet),
        launch=Rate.of([tried[1] for tried in found], quiet=quiet),
        products={rows: max(tried[2][rows] for tried in found) for rows in found[0][2]},
        busy=busy,
    )


def native() -> Any | None:
    """The native kernels' module if they run here, else None."""
    kernels = _kernels()
    return kernels if kernels is not None and kernels.available() else None


def native_state() -> dict[str, Any]:
    """`isa`: the instruction set that the native kernels use, or None and `why_not`: a sentence."""
    kernels = _kernels()
    if kernels is None:
        return {"isa": None, "why_not": "this build of skimp has no native kernels"}
    there = kernels.available()
    return {
        "isa": str(kernels.isa()) if there else None,
        "why_not": None if there else str(kernels.why_not()),
    }


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize()


@dataclass(frozen=True)
class _Probe:
    """Ways to do the same, `work` units a call, so many `calls` a timing."""

    ways: tuple[Way, ...]
    work: float
    calls: int
    device: torch.device

    @classmethod
    def of(cls, ways: Sequence[Way], work: float, device: torch.device) -> tuple["_Probe", float]:
        """Warm the ways up; also the seconds that one call of the fastest takes."""
        for way in ways:
            way()
        synchronize(device)
        best = min(_timed(way, 1, device) for way in ways)
        return cls(tuple(ways), work, ceil(_LEAST_TIMING / best), device), best

    def rate(self, seconds: float) -> float:
        """Units a second of the fastest way: all once, then the good ones until time is spent."""
        took = {way: _timed(way, self.calls, self.device) for way in self.ways}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            good = _HOPELESS * min(took.values())
            for way in [way for way, best in took.items() if best < good]:
                took[way] = min(took[way], _timed(way, self.calls, self.device))
        return self.work / min(took.values())


@dataclass(frozen=True)
class _Probes:
    read: _Probe
    launch: _Probe
    products: Mapping[int, _Probe]
    seconds: float

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype, effort: Effort) -> "_Probes":
        weights = _weights(device, dtype, effort)
        like = next(weights)
        read, _ = _Probe.of(_readings(weights), like.nbytes, device)
        launch, _ = _Probe.of([_launches(device)], _LAUNCHES, device)
        products: dict[int, _Probe] = {}
        per_row = 0.0
        for rows in effort.rows:
            if rows * per_row > effort.longest:
                break
            flops = 2 * rows * like.numel()
            products[rows], took = _Probe.of(_linear(weights, rows), flops, device)
            per_row = took / rows
        return cls(read, launch, products, effort.seconds)

    def rates(self) -> tuple[float, float, dict[int, float]]:
        """One try: bytes/s, launches/s, FLOP/s by rows."""
        read = self.read.rate(self.seconds)
        launch = self.launch.rate(self.seconds / 5)
        # Each count of rows takes a part of the time, or one timing where that is longer.
        part = self.seconds / len(self.products)
        return read, launch, {rows: probe.rate(part) for rows, probe in self.products.items()}


def _timed(way: Way, calls: int, device: torch.device) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(calls):
        way()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def _weights(device: torch.device, dtype: torch.dtype, effort: Effort) -> Weights:
    """Random matrices [outputs, inputs], all alike, again and again.

    Whoever asks next gets the one that was used longest ago, so that no cache holds it any more.
    Matrices of ones would need less power, and run faster, on a GPU.
    """
    size = effort.buffer
    if device.type == "cpu":
        size = min(size, psutil.virtual_memory().available // 4)
    generator = torch.Generator(device).manual_seed(0)
    one = torch.randn(effort.weight, generator=generator, device=device).to(dtype)
    return cycle([one.clone() for _ in range(max(2, size // one.nbytes))])


def _readings(weights: Weights) -> list[Way]:
    """Ways to read every byte of a matrix once.

    No single kernel is fastest everywhere: a float sum waits for its additions on one machine, an
    integer maximum is not vectorised on the next, a product with one row is nowhere as good as a
    kernel made for it. A copy of one half moves every byte twice, in and out. A matrix at a time
    keeps timings short: between two disturbances a short one fits more often.
    """

    def copy() -> None:
        one, other = next(weights).chunk(2)
        one.copy_(other)

    return [
        lambda: next(weights).view(torch.float32).sum(),
        lambda: next(weights).view(torch.float32).amax(1),
        lambda: next(weights).view(torch.int64).max(),
        copy,
        *_linear(weights, 1),
    ]


def _linear(weights: Weights, rows: int) -> list[Way]:
    """Ways to multiply `rows` rows with a matrix."""
    like = next(weights)
    left = torch.ones(rows, like.shape[-1], dtype=like.dtype, device=like.device)
    ways: list[Way] = [lambda: functional.linear(left, next(weights))]
    kernels = native()
    known = like.device.type == "cpu" and like.dtype in (torch.float32, torch.bfloat16)
    if known and rows <= _NATIVE_ROWS and kernels is not None:
        ways.append(lambda: kernels.linear(left, next(weights)))
    return ways


def _launches(device: torch.device) -> Way:
    """Operations on one number, in a row."""
    number = torch.ones((), device=device)

    def row() -> None:
        for _ in range(_LAUNCHES):
            number.neg()

    return row


class _Bystanders:
    """What other programs take of the processor from now on."""

    def __init__(self) -> None:
        self._start = self._marks()

    def share(self) -> float:
        """Of all cores, since the start; at least 0, since the system counts in coarse ticks."""
        wall, everyone, own = (
            now - then for now, then in zip(self._marks(), self._start, strict=True)
        )
        return max(0.0, everyone - own) / (wall * (psutil.cpu_count(logical=True) or 1))

    @staticmethod
    def _marks() -> tuple[float, float, float]:
        spent = psutil.cpu_times()._asdict()
        # Guests are counted in `user` already.
        idle = ("idle", "iowait", "guest", "guest_nice")
        busy = sum(seconds for name, seconds in spent.items() if name not in idle)
        return time.perf_counter(), busy, time.process_time()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    kernels = native()
    before = torch.get_num_threads(), kernels.threads() if kernels is not None else 1
    torch.set_num_threads(count)
    if kernels is not None:
        kernels.set_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        if kernels is not None:
            kernels.set_threads(before[1])


def _kernels() -> Any | None:
    try:
        kernels = importlib.import_module("skimp.kernels")
    except ImportError:
        return None
    return kernels if hasattr(kernels, "available") else None
