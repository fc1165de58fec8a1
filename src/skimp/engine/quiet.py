"""Small work of torch between two decode steps, kept off the processors that the steps need."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """On a CPU, let torch work in the calling thread only.

    After each piece of work OpenMP's threads look out for more for milliseconds, and take half of
    the machine from the kernels' threads meanwhile. Torch keeps its number of threads by thread.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
