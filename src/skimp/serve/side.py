"""One engine's jobs: those whose turn it is not yet, the one being read, those being decoded."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from torch import Tensor

from skimp.engine import Engine, State
from skimp.engine.batching import Batch, sizes
from skimp.engine.quiet import alone
from skimp.engine.sampling import check
from skimp.errors import RequestError
from skimp.serve.jobs import Ended, Limits
from skimp.serve.work import Work


@dataclass
class Tally:
    """What was done so far; as in :class:`skimp.serve.jobs.Stats`."""

    endings: Counter[str] = field(default_factory=Counter)
    steps: Counter[int] = field(default_factory=Counter)
    read: int = 0
    emitted: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True)
class Kept:
    """A prompt that was read, as it was then: `state` of one sequence, `logits` [1, V]."""

    prompt: tuple[int, ...]
    state: State
    logits: Tensor


class Side:
    """Runs the jobs of one engine, a piece of work at a time; for one thread.

    A prompt that several jobs ask about, one behind the other (a request for several answers), is
    read once.

    Attributes:
        waiting: jobs in the order in which they came.
        reading: the job whose prompt is being read.
        running: those that are decoded together.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine = engine
        self.waiting: deque[Work] = deque()
        self.reading: Work | None = None
        self.running: list[Work] = []
        self.tally = Tally()
        self._limits = limits
        self._kept: Kept | None = None
        self._batch = Batch(engine)
        self._most = 1 if self._batch.apart else limits.batch

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.reading or self.running)

    @property
    def columns(self) -> int:
        """Columns of cache that are held, or will be once what is being read has joined."""
        reading = self.reading
        return self._batch.columns if reading is None else self._batch.columns_with(reading.most)

    @property
    def next(self) -> Work | None:
        """The job to be read next, if there is a place for it."""
        taken = len(self.running) + (self.reading is not None)
        return self.waiting[0] if self.waiting and taken < self._most else None

    def columns_with(self, work: Work) -> int:
        return self._batch.columns_with(work.most)

    def fits(self, work: Work) -> bool:
        """Whether there is the memory for a job."""
        return self._batch.fits(work.most)

    def warm_up(self) -> None:
        """Make the fast decode steps for all sizes of the batch."""
        for size in sizes(self._most):
            self.engine.warm_up(size)

    def admit(self) -> None:
        """Begin with the first that waits; at once with its answer if its prompt was just read."""
        work, kept = self.waiting.popleft(), self._kept
        self.tally.queue_s += time.monotonic() - work.ticket.since
        if kept is None or kept.prompt != work.ticket.job.prompt:
            self.reading = work
            return
        try:
            self._begin(work, kept.state, kept.logits)
        except Exception as error:
            self._end(work, "error", error)

    def read(self, budget: int) -> int:
        """Read a piece of the prompt under way and join its job to the others once it is read.

        A prompt is cut at the same places whatever else is going on, so that its answer does not
        hang on that. What comes after the first piece must fit the budget.

        Returns:
            The tokens that were read; 0 if there is nothing to read, or the next piece is too much.
        """
        work, chunk = self.reading, self._limits.chunk
        if work is None:
            return 0
        piece = min(chunk, work.left)
        if piece > budget:
            return 0
        start = time.perf_counter()
        try:
            logits = work.read_on(piece, work.room if self._batch.apart else 1)
            if logits is not None:
                self.reading = None
                self._begin(work, work.take_state(), logits)
        except Exception as error:
            self.reading = None
            self._end(work, "error", error)
        self.tally.read += piece
        self.tally.prefill_s += time.perf_counter() - start
        return piece

    def step(self) -> None:
        """One more token for each of those who run."""
        if not self.running:
            return
        start = time.perf_counter()
        self.tally.steps[len(self.running)] += 1
        works = {id(work.seat): work for work in self.running}
        try:
            order = [works[id(seat)] for seat in self._batch.seats]
            logits = self._batch.decode([work.token for work in order])
            with alone(logits.device):
                for work, error in self._taken(order, logits):
                    self._end(work, "error", error)
        except Exception as error:
            self._fail(error)
        self._part()
        self.tally.decode_s += time.perf_counter() - start

    def sweep(self, now: float) -> None:
        """Let go of those who were cancelled or whose time is up."""
        for work in self._everyone():
            if work.ticket.cancelled:
                self._end(work, "cancelled")
            elif work.ticket.expired(now):
                self._end(work, "timeout")
        if any(work.ticket.ended for work in self.waiting):
            self.waiting = deque(work for work in self.waiting if not work.ticket.ended)
        if self.reading is not None and self.reading.ticket.ended:
            self.reading = None
        self._forget()
        self._part()

    def refuse(self, work: Work, reason: str) -> None:
        """End a job that waits and can never be served."""
        self.waiting.remove(work)
        self._end(work, "error", RequestError(reason))

    def end_all(self, ended: Ended, error: Exception | None = None) -> None:
        """Let go of everyone."""
        for work in self._everyone():
            self._end(work, ended, error)
        self.waiting.clear()
        self.reading, self.running, self._kept = None, [], None
        self._batch = Batch(self.engine)

    def _everyone(self) -> list[Work]:
        reading = [] if self.reading is None else [self.reading]
        return [*self.waiting, *reading, *self.running]

    def _begin(self, work: Work, state: State, logits: Tensor) -> None:
        """Emit the first token and join the others, unless that was all."""
        exits = self.engine.exits
        with alone(logits.device):
            check(logits)
            token = int(logits.argmax(-1)) if work.greedy else work.draw(logits)
            self._emit(work, token, logits[0], None if exits is None else exits.layers)
        if not work.ticket.ended:
            (work.seat,) = self._batch.join(state, work.room)
            self.running.append(work)
        if self._batch.apart is None:  # else nothing is copied, and the state is at work itself
            self._kept = Kept(work.ticket.job.prompt, state, logits)
            self._forget()

    def _forget(self) -> None:
        """Let go of the prompt that was kept unless it is wanted next."""
        if self._kept is not None:
            following = self.waiting[0].ticket.job.prompt if self.waiting else None
            if following != self._kept.prompt:
                self._kept = None

    def _taken(self, order: list[Work], logits: Tensor) -> list[tuple[Work, Exception]]:
        """Emit everyone's token; those for whom that went wrong, with the reason."""
        failed: list[tuple[Work, Exception]] = []
        likeliest = logits.argmax(-1).tolist()
        sound = logits.amax(-1).float().isfinite().tolist()
        for at, work in enumerate(order):
            row = logits[at : at + 1]
            try:
                if not sound[at]:
                    check(row)
                token = likeliest[at] if work.greedy else work.draw(row)
                assert work.seat is not None
                self._emit(work, token, row[0], work.seat.depth)
            except Exception as error:
                failed.append((work, error))
        return failed

    def _emit(self, work: Work, token: int, logits: Tensor, depth: int | None) -> None:
        before = work.emitted
        work.emit(token, logits, depth)
        self.tally.emitted += work.emitted - before
        if work.ticket.ended:
            self.tally.endings[work.ticket.ended] += 1

    def _end(self, work: Work, ended: Ended, error: Exception | None = None) -> None:
        if not work.ticket.ended:
            work.end(ended, None if error is None else _sentence(error))
            self.tally.endings[ended] += 1

    def _part(self) -> None:
        """Have those who ended leave the batch."""
        gone = [work for work in self.running if work.ticket.ended]
        if not gone:
            return
        self.running = [work for work in self.running if not work.ticket.ended]
        spoilt = any(work.ticket.ended == "error" for work in gone)
        try:
            self._batch.leave(*(work.seat for work in gone if work.seat), spoilt=spoilt)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End all jobs of a batch that cannot be trusted any more, and begin a new one."""
        for work in self.running:
            self._end(work, "error", error)
        self.running = []
        self._batch = Batch(self.engine)


def _sentence(error: Exception) -> str:
    if isinstance(error, RequestError):
        return str(error)
    return f"the engine failed at this job ({type(error).__name__}: {error}); try it again."
