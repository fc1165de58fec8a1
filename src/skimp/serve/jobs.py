"""What a client asks of the engines, what it is told, and the ticket between the two.

A :class:`Ticket` is where two threads meet: the scheduler's tells it what happens, the client's
reads that, from an asyncio loop or from a thread that waits. A client that does not read piles up
at most one event a token that it asked for, and one for the end.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from skimp.engine.sampling import Sampling
from skimp.errors import RequestError, SkimpError

Side = Literal["planned", "dense"]
Ended = Literal["end", "stop", "length", "context", "cancelled", "timeout", "error"]


class Busy(SkimpError):
    """No more jobs are taken, for now or for good; the message says which."""


@dataclass(frozen=True)
class Job:
    """What one choice of one request asks of an engine.

    `prompt`: token ids. `new`: tokens at most. `stop`: strings that end the text and are no part
    of it. `logprobs`: how many likeliest tokens are told beside each emitted one; 0 is the emitted
    one alone, None no figures. `side`: which engine runs it. `ignore_ends`: tokens that end a text
    are tokens like others. `timeout_s`: seconds from the submission on, waiting included.
    """

    prompt: tuple[int, ...]
    new: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    side: Side = "planned"
    ignore_ends: bool = False
    timeout_s: float | None = None


@dataclass(frozen=True)
class Told:
    """One event of a job: a token, text, or the end.

    `token`: None at an end that brings none. `text`: what is certain by now; a beginning of a stop
    string is held back. `logprob`: of the token, in nats, under the model's own distribution
    (before temperature and filters). `top`: the likeliest tokens and theirs. `depth`: layers after
    which the token was decided, where tokens may leave early. `ended`: why there is no more; it is
    set on the last event and on no other. "end": a token that ends texts, which is not told;
    "context": the model can hold no more. `error`: one sentence, where `ended` is "error".
    """

    token: int | None
    text: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    depth: int | None = None
    ended: Ended | None = None
    error: str | None = None


@dataclass(frozen=True)
class Limits:
    """What a scheduler takes on.

    `batch`: sequences that are decoded together, on each side. `waiting`: jobs in the queue.
    `tokens`: columns of KV cache that all running jobs may have room for, None as many as memory
    holds. `chunk`: prompt tokens that are read between two decode steps of those who are running.

    Raises:
        RequestError: one of them is below 1.
    """

    batch: int = 16
    waiting: int = 64
    tokens: int | None = None
    chunk: int = 128

    def __post_init__(self) -> None:
        for name in ("batch", "waiting", "tokens", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name}: {value} does not fit; give at least 1.")


@dataclass(frozen=True)
class Stats:
    """What a scheduler has done so far, and has at hand.

    `waiting` and `running` jobs now; `finished`, `cancelled` (by their clients or at the close),
    `timed_out`, `failed` and `refused` ones since the start. `read` and `emitted` tokens. `steps`:
    decode steps by how many sequences took part. Seconds: `queue_s` that jobs waited before their
    prompt was read, all together; `prefill_s` and `decode_s` of work; `uptime_s` since the start.
    `columns`: columns of KV cache held now, over all sequences.
    """

    waiting: int = 0
    running: int = 0
    finished: int = 0
    cancelled: int = 0
    timed_out: int = 0
    failed: int = 0
    refused: int = 0
    read: int = 0
    emitted: int = 0
    steps: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    uptime_s: float = 0.0
    columns: int = 0


class Ticket:
    """A job under way: iterate over it for its events, the last of which has `ended` set.

    Each event is handed out once, whoever asks first. Iterating asynchronously works from any
    event loop; `blocking()` is for threads. Whoever stops reading should `cancel()`.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.since = time.monotonic()
        self._events: deque[Told] = deque()
        self._changed = threading.Condition()
        self._loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._cancelled = False
        self._ended: Ended | None = None
        self._over = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self._cancelled

    @property
    def ended(self) -> Ended | None:
        """Why the job has ended, as soon as it has, whether or not that was read; else None."""
        return self._ended

    def cancel(self) -> None:
        """Want no more of the answer; from any thread, any number of times, also after its end."""
        self._cancelled = True

    def expired(self, now: float) -> bool:
        """Whether the job's time is up at `now`, by time.monotonic()."""
        limit = self.job.timeout_s
        return limit is not None and now - self.since >= limit

    def tell(self, told: Told) -> None:
        """Hand an event to whoever reads; nothing after the end. For the scheduler."""
        with self._changed:
            if self._ended is not None:
                return
            self._ended = told.ended
            self._events.append(told)
            self._changed.notify_all()
            loops, self._loops = self._loops, []
        for loop, waiter in loops:
            with suppress(RuntimeError):  # its loop was closed while it waited
                loop.call_soon_threadsafe(_wake, waiter)

    def blocking(self, timeout_s: float | None = None) -> Iterator[Told]:
        """The events, waiting for each.

        Raises:
            TimeoutError: one took longer than `timeout_s`.
        """
        while True:
            with self._changed:
                ready = self._changed.wait_for(lambda: self._events or self._over, timeout_s)
                if not ready:
                    raise TimeoutError(f"no event of the job within {timeout_s} s")
                told = self._taken()
            if told is None:
                return
            yield told

    def __aiter__(self) -> AsyncIterator[Told]:
        return self

    async def __anext__(self) -> Told:
        while True:
            with self._changed:
                if self._events or self._over:
                    told = self._taken()
                    break
                loop = asyncio.get_running_loop()
                entry = loop, loop.create_future()
                self._loops.append(entry)
            try:
                await entry[1]
            finally:
                with self._changed:
                    if entry in self._loops:
                        self._loops.remove(entry)
        if told is None:
            raise StopAsyncIteration
        return told

    def _taken(self) -> Told | None:
        if not self._events:
            return None
        told = self._events.popleft()
        if told.ended is not None:
            self._over = True
            self._changed.notify_all()
        return told


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
