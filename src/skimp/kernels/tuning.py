"""How many threads a product should use here: measured, since one core may saturate the memory."""

from __future__ import annotations

import threading
import time
from statistics import median

import torch

from skimp.kernels.library import library, threads, threads_asked, use_threads

_HEIGHT, _WIDTH, _MATRICES = 2048, 2048, 12  # 8 MiB each: together more than caches hold
_TRIES = 4
_WORTH = 1.1
"""More threads must be so many times faster: they are the first to suffer from other programs."""

_lock = threading.Lock()
_settled: dict[int, int] = {}


def settle_threads() -> int:
    """Choose the number of threads, at most torch's own, once a process; takes about 0.1 s.

    Returns what the kernels use from now on: what `set_threads` asked for, if it was called.
    """
    if threads_asked():
        return threads()
    most = torch.get_num_threads()
    with _lock:
        if most not in _settled:
            _settled[most] = _measured(most)
            use_threads(_settled[most])
        return _settled[most]


def _measured(most: int) -> int:
    """The fewest threads that are about as fast as any, of 1, 2, 4, … and `most`."""
    if most < 2 or library() is None:
        return 1
    counts = sorted({1, most, *(2**n for n in range(1, most.bit_length()) if 2**n <= most)})
    weights = torch.ones(_MATRICES, _HEIGHT, _WIDTH, dtype=torch.bfloat16).unbind()
    times = {count: _seconds(weights, count) for count in counts}
    best = 1
    for count in counts[1:]:
        if times[count] * _WORTH < times[best]:
            best = count
    return best


def _seconds(weights: tuple[torch.Tensor, ...], count: int) -> float:
    from skimp.kernels.ops import linear

    use_threads(count)
    row = torch.ones(1, _WIDTH, dtype=torch.bfloat16)
    taken = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        for weight in weights:
            linear(row, weight)
        taken.append(time.perf_counter() - start)
    return median(taken)
