"""Who is served when: one thread that runs the engines, for any number of clients.

A round of the thread gives each side its turn: those who were cancelled or whose time is up leave;
prompts are read, at most `chunk` tokens of them; everyone who runs gets one more token. So a long
prompt delays the others' next token by no more than a piece of it takes, and reading goes on
between any two steps. While nobody runs, prompts are read without a pause.

Jobs are begun in the order in which they came, on each side. Where there is no memory for the next
one, it waits until enough of those who run have ended, and nobody who came later is begun on either
side. Where its side's batch is full, only its side waits.

Answers do not hang on the load: prompts are read alone and cut at fixed places, every sequence has
its own random numbers, and a batch's sequences do not see each other. What remains is rounding: a
step's sums are added up in an order that may depend on the size of the batch.
"""

import logging
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from skimp.engine import Engine
from skimp.errors import RequestError
from skimp.serve.jobs import Busy, Job, Limits, Stats, Ticket
from skimp.serve.side import Side
from skimp.serve.work import Work

_LOG = logging.getLogger(__name__)
_PAUSE_S = 0.05  # between looks at a queue that nothing but time or its clients can shorten


class Scheduler:
    """Serves jobs with one engine a side, all of them on one thread.

    Args:
        engines: by the name of their side, "planned" or "dense".
        tokenizer: turns tokens into text; None: only tokens are told.
    """

    def __init__(self, engines: Mapping[str, Engine], tokenizer: Any, limits: Limits) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._sides = {name: Side(engine, limits) for name, engine in engines.items()}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._arrived: list[tuple[Side, Work]] = []
        self._closing = self._stopping = False
        self._refused = 0
        self._since = time.monotonic()

    def start(self) -> None:
        """Begin to serve; jobs that were submitted before wait for it."""
        if self._thread is None:
            self._since = time.monotonic()
            self._thread = threading.Thread(target=self._serve, name="skimp-engines", daemon=True)
            self._thread.start()

    def submit(self, job: Job) -> Ticket:
        """Queue a job.

        Raises:
            Busy: the queue is full, or the scheduler is closing.
            RequestError: the job does not fit the model or the limits, or a setting is wrong.
        """
        side = self._sides.get(job.side)
        if side is None:
            raise RequestError(
                f"side: {job.side!r} is not served here; use {' or '.join(self._sides)}."
            )
        work = Work(Ticket(job), side.engine, self._tokenizer)
        tokens = self._limits.tokens
        if tokens is not None and work.most > tokens:
            raise RequestError(
                f"prompt: with its answer it may come to {work.most} tokens and the server has "
                f"room for {tokens}; shorten it or ask for fewer tokens."
            )
        with self._changed:
            waiting = len(self._arrived) + sum(len(each.waiting) for each in self._sides.values())
            if self._closing or waiting >= self._limits.waiting:
                self._refused += 1
                why = "the server is closing" if self._closing else f"{waiting} jobs are waiting"
                raise Busy(f"{why} and no more are taken; try again later.")
            self._arrived.append((side, work))
            self._changed.notify_all()
        return work.ticket

    def stats(self) -> Stats:
        """What was done so far and is at hand."""
        sides = list(self._sides.values())
        tallies = [side.tally for side in sides]
        ended = {name: sum(tally.endings[name] for tally in tallies) for name in _ENDINGS}
        steps: dict[int, int] = {}
        for tally in tallies:
            for size, count in list(tally.steps.items()):
                steps[size] = steps.get(size, 0) + count
        with self._changed:
            waiting = len(self._arrived) + sum(len(side.waiting) for side in sides)
        return Stats(
            waiting=waiting,
            running=sum(len(side.running) + (side.reading is not None) for side in sides),
            finished=sum(ended[name] for name in ("end", "stop", "length", "context")),
            cancelled=ended["cancelled"],
            timed_out=ended["timeout"],
            failed=ended["error"],
            refused=self._refused,
            read=sum(tally.read for tally in tallies),
            emitted=sum(tally.emitted for tally in tallies),
            steps=MappingProxyType(dict(sorted(steps.items()))),
            queue_s=sum(tally.queue_s for tally in tallies),
            prefill_s=sum(tally.prefill_s for tally in tallies),
            decode_s=sum(tally.decode_s for tally in tallies),
            uptime_s=time.monotonic() - self._since,
            columns=sum(side.columns for side in sides),
        )

    def close(self, grace_s: float = 0.0) -> None:
        """Take no more jobs, let those that were taken finish for `grace_s` seconds at most, then
        cancel the rest; returns when all is over. May be called again, to cut the grace short."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if self._thread is not None:
                self._changed.wait_for(lambda: self._stopping, grace_s)
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            self._let_go()
        else:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._arrived or self._stopping or self._busy()):
                    if self._closing:
                        self._stopping = True
                        self._changed.notify_all()
                        break
                    self._changed.wait()
                if self._stopping:
                    break
            self._take_in()
            try:
                self._round()
            except Exception as error:  # a mistake in here: those who come later shall not suffer
                _LOG.exception("a round of the scheduler failed")
                for side in self._sides.values():
                    side.end_all("error", error)
        self._let_go()

    def _let_go(self) -> None:
        self._take_in()
        for side in self._sides.values():
            side.end_all("cancelled")

    def _busy(self) -> bool:
        return any(side.busy for side in self._sides.values())

    def _take_in(self) -> None:
        """Put those who arrived in their sides' queues."""
        with self._changed:
            for side, work in self._arrived:
                side.waiting.append(work)
            self._arrived.clear()

    def _round(self) -> None:
        sides = list(self._sides.values())
        for side in sides:
            side.sweep(time.monotonic())
        self._read(sides)
        for side in sides:
            side.step()
        if self._busy() and not any(side.running or side.reading for side in sides):
            time.sleep(_PAUSE_S)

    def _read(self, sides: list[Side]) -> None:
        """Read a chunk of prompts on each side, the first that came first."""
        budgets = dict.fromkeys(range(len(sides)), self._limits.chunk)
        while True:
            self._admit(sides)
            done = 0
            for index, side in enumerate(sides):
                read = side.read(budgets[index])
                budgets[index] -= read
                done += read
            if not done:
                return

    def _admit(self, sides: list[Side]) -> None:
        """Begin with those who wait, where there is a place and the memory."""
        heads = [(side, side.next) for side in sides if side.reading is None]
        found = [(side, work) for side, work in heads if work is not None]
        for side, work in sorted(found, key=lambda pair: pair[1].ticket.since):
            others = sum(other.columns for other in sides if other is not side)
            tokens = self._limits.tokens
            over = tokens is not None and others + side.columns_with(work) > tokens
            working = any(each.running or each.reading for each in sides)
            if (over and working) or not side.fits(work):
                if not working:
                    side.refuse(work, "there is not the memory for this job; ask for fewer tokens.")
                return
            side.admit()


_ENDINGS = ("end", "stop", "length", "context", "cancelled", "timeout", "error")
