"""One job at work: its prompt as far as it is read, its tokens as they are drawn, what is told."""

import torch
from torch import Tensor

from skimp.engine import Engine, State
from skimp.engine.answers import Row
from skimp.engine.batching import Seat
from skimp.engine.generation import room_for
from skimp.engine.limits import check_prompts
from skimp.engine.sampling import Sampler
from skimp.errors import RequestError
from skimp.serve.jobs import Ended, Job, Ticket, Told


class Work:
    """What the scheduler keeps of a job until it ends.

    Attributes:
        ticket: who is told.
        room: tokens that may be emitted, by what was asked for and by the model's context.
        state: the prompt's, while it is read; `read` counts its tokens.
        seat: where it sits in the batch, from its first token on.
        token: the last that was emitted.

    Raises:
        RequestError: the job does not fit the model, or a setting is wrong.
    """

    def __init__(self, ticket: Ticket, engine: Engine, tokenizer: object) -> None:
        job = ticket.job
        _check(job)
        self.ticket = ticket
        self.room, self._full = room_for(len(job.prompt), job.new, engine.anatomy.context_length)
        check_prompts([job.prompt], self.room, engine.anatomy)
        ends = frozenset[int]() if job.ignore_ends else engine.ends
        self._row = Row(ends, tokenizer, job.stop)
        self._engine = engine
        self._sampler: Sampler | None = None
        self.state: State | None = None
        self.read = 0
        self.seat: Seat | None = None
        self.token = 0
        self.emitted = 0

    @property
    def most(self) -> int:
        """Tokens that it may come to, prompt and answer."""
        return len(self.ticket.job.prompt) + self.room

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is all that is wanted."""
        sampling = self.ticket.job.sampling
        return sampling.greedy and sampling.repetition_penalty == 1

    @property
    def left(self) -> int:
        """Tokens of the prompt that are not read yet."""
        return len(self.ticket.job.prompt) - self.read

    def read_on(self, tokens: int, room: int) -> Tensor | None:
        """Read so many more tokens of the prompt; logits [1, V] once that was all of it.

        `room`: tokens that the request itself is to hold after its prompt.
        """
        part = list(self.ticket.job.prompt[self.read : self.read + tokens])
        if self.state is None:
            logits, self.state = self._engine.prefill([part], self.left - len(part) + room)
        else:
            device = self.state.pads.device
            logits = self._engine.extend(self.state, torch.tensor([part], device=device))
        self.read += len(part)
        return None if self.left else logits

    def take_state(self) -> State:
        """The prompt's state, which the job holds no longer."""
        state, self.state = self.state, None
        assert state is not None
        return state

    def draw(self, logits: Tensor) -> int:
        """The next token by the job's own sampling, by logits [1, V]."""
        if self._sampler is None:
            job = self.ticket.job
            self._sampler = Sampler(job.sampling, 1, logits.shape[1], logits.device)
            self._sampler.see(torch.tensor([job.prompt]))
        return int(self._sampler.pick(logits))

    def emit(self, token: int, logits: Tensor, depth: int | None) -> None:
        """Take a token that was drawn by `logits` [V], and tell what is certain by now."""
        given, text = self._row.add(token)
        if given is None:
            self.ticket.tell(Told(None, text or "", depth=depth, ended=self._row.answer.ended))
            return
        self.token = given
        self.emitted += 1
        text = text or ""
        if not self._row.ended and self.emitted >= self.room:
            text += self._row.close("context" if self._full else "length") or ""
        ended = self._row.answer.ended if self._row.ended else None
        logprob, top = self._likely(token, logits)
        self.ticket.tell(Told(given, text, logprob, top, depth, ended))

    def end(self, ended: Ended, error: str | None = None) -> None:
        """End it before its time; text that was held back is handed out."""
        self.ticket.tell(Told(None, self._row.close("length") or "", ended=ended, error=error))
        self.state = None

    def _likely(
        self, token: int, logits: Tensor
    ) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        wanted = self.ticket.job.logprobs
        if wanted is None:
            return None, ()
        shares = logits.float().log_softmax(-1)
        values, tokens = shares.topk(min(wanted, len(shares)))
        return float(shares[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True))


def _check(job: Job) -> None:
    if job.logprobs is not None and job.logprobs < 0:
        raise RequestError(f"logprobs: {job.logprobs} does not fit; give 0 or more, or None.")
    if job.timeout_s is not None and not job.timeout_s > 0:
        raise RequestError(f"timeout_s: {job.timeout_s} does not fit; give seconds above 0.")
