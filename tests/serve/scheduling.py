"""A scheduler for tests: of a tiny model, decoding only as far as a test has got if it wants."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests import families
from tests.tiny import byte_tokenizer
from torch import Tensor

from skimp.engine import Engine
from skimp.engine.batching import Batch
from skimp.serve.jobs import Limits, Stats, Ticket, Told
from skimp.serve.scheduler import Scheduler

WAIT = 60.0  # seconds that a test waits for an event at most: nothing here takes one


@contextmanager
def serving(engine: Engine, start: bool = True, **limits: Any) -> Iterator[Scheduler]:
    scheduler = Scheduler({"planned": engine}, byte_tokenizer(), Limits(**limits))
    if start:
        scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[tuple[int, ...]]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=random).tolist()
    return [
        tuple(torch.randint(2, families.VOCABULARY, (n,), generator=random).tolist())
        for n in lengths
    ]


def told(ticket: Ticket) -> list[Told]:
    return list(ticket.blocking(WAIT))


def tokens(events: list[Told]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def at_rest(scheduler: Scheduler) -> Stats:
    """What was done once nobody runs: the last event comes a moment before its job has left."""
    end = time.monotonic() + WAIT
    while (found := scheduler.stats()).running or found.columns:
        assert time.monotonic() < end, found
        time.sleep(0.001)
    return found


class Gate:
    """Lets a batch decode only as far as a test has got."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = threading.Semaphore(0)
        self.open = threading.Event()
        decode = Batch.decode

        def gated(batch: Batch, tokens: Any) -> Tensor:
            while not self.open.is_set() and not self.steps.acquire(timeout=0.01):
                pass
            return decode(batch, tokens)

        monkeypatch.setattr(Batch, "decode", gated)
