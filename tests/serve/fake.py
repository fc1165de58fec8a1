"""A scheduler without engines: what it writes follows from the prompt alone."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skimp.engine.pieces import Pieces
from skimp.engine.stopping import StopStrings
from skimp.errors import RequestError
from skimp.serve.jobs import Busy, Job, Limits, Stats, Ticket, Told


@dataclass
class Run:
    """A job under way."""

    ticket: Ticket
    pieces: Pieces
    stops: StopStrings
    given: int = 0


@dataclass
class FakeScheduler:
    """Emits a token of every job each `pace_s`. `script`: what to end with or fail at, by prompt.

    Tokens follow from the prompt's sum, and on a dense side they differ from the third on. `go`:
    nobody gets more than three tokens before it is set.
    """

    tokenizer: Any
    vocabulary: int
    limits: Limits = Limits(batch=4, waiting=4)
    pace_s: float = 0.001
    ends: Mapping[tuple[int, ...], str] = field(default_factory=dict)
    exits: bool = False
    go: threading.Event | None = None

    def __post_init__(self) -> None:
        self.seen: list[Job] = []
        self.cancelled = 0
        self._lock = threading.Lock()
        self._runs: list[Run] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> Ticket:
        with self._lock:
            if self._closing.is_set():
                raise Busy("the scheduler is closing; ask another one.")
            if len(self._runs) >= self.limits.batch + self.limits.waiting:
                raise Busy("the queue is full; try again later.")
            if not job.prompt:
                raise RequestError("prompt 0: it has no tokens; give some text to continue.")
            self.seen.append(job)
            ticket = Ticket(job)
            self._runs.append(Run(ticket, Pieces(self.tokenizer), StopStrings(job.stop)))
            return ticket

    def stats(self) -> Stats:
        running = min(len(self._runs), self.limits.batch)
        waiting = len(self._runs) - running
        return Stats(waiting, running, cancelled=self.cancelled, steps={1: 2})

    def close(self, grace_s: float) -> None:
        self._closing.set()
        self._thread.join(grace_s)
        with self._lock:
            for run in self._runs:
                run.ticket.tell(Told(None, ended="cancelled"))
            self._runs.clear()

    def _work(self) -> None:
        waited = threading.Event()
        while not (self._closing.is_set() and not self._runs):
            waited.wait(self.pace_s)
            with self._lock:
                self._runs = [
                    run
                    for index, run in enumerate(self._runs)
                    if index >= self.limits.batch or self._step(run)
                ]

    def _step(self, run: Run) -> bool:
        """One token of a job; whether it goes on."""
        ticket, job = run.ticket, run.ticket.job
        if ticket.cancelled:
            self.cancelled += 1
            ticket.tell(Told(None, ended="cancelled"))
            return False
        script = self.ends.get(job.prompt)
        if script is not None and run.given == 3:
            rest = run.stops.add(run.pieces.rest()) + run.stops.rest() if script == "end" else ""
            error = "the model's logits hold NaN." if script == "error" else None
            ticket.tell(Told(None, rest, ended=script, error=error))  # type: ignore[arg-type]
            return False
        if self.go is not None and run.given == 3 and not self.go.is_set():
            return True
        token = self.token(job, run.given)
        run.given += 1
        text = run.stops.add(run.pieces.add(token))
        last = run.given == job.new
        stopped = run.stops.stopped is not None
        if last and not stopped:
            text += run.stops.add(run.pieces.rest()) + run.stops.rest()
            stopped = run.stops.stopped is not None
        top = tuple((token + i, -1.0 - i) for i in range(job.logprobs or 0))
        ticket.tell(
            Told(
                token,
                text,
                None if job.logprobs is None else -1.0,
                top,
                2 + run.given % 3 if self.exits else None,
                "stop" if stopped else "length" if last else None,
            )
        )
        return not (stopped or last)

    def token(self, job: Job, index: int) -> int:
        """The token at `index` of a job's answer."""
        drawn = 0 if job.sampling.greedy else job.sampling.seed
        shift = 5 if job.side == "dense" and index > 2 else 0
        return 33 + (sum(job.prompt) + 7 * index + shift + drawn) % (self.vocabulary - 80)
