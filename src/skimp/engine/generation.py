"""From a prompt to its answer: the decode loop, its endings, and its text."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from skimp.engine.pieces import Pieces
from skimp.engine.quiet import alone
from skimp.engine.runners import pad_left
from skimp.engine.sampling import Sampler, Sampling, check
from skimp.engine.state import State
from skimp.engine.stopping import StopStrings
from skimp.errors import RequestError

Ending = Literal["end", "stop", "length", "context"]


class Decoder(Protocol):
    """What the loop needs of an engine."""

    def prefill(
        self, prompts: Sequence[Sequence[int]], new: int, *, chunk: int | None = None
    ) -> tuple[Tensor, State]: ...

    def decode(self, state: State, tokens: Tensor) -> Tensor: ...

    def settle(self, state: State) -> None: ...


@dataclass
class Timing:
    """What a batch took: seconds of the prefill and of each decode step."""

    prefill_s: float = 0.0
    steps: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float | None:
        """Decode steps per second; None if there was none."""
        return len(self.steps) / sum(self.steps) if self.steps else None


@dataclass
class Answer:
    """What one prompt was continued with.

    `ended`: an end-of-text token ("end", not among the tokens), a stop string ("stop", not in the
    text), as many tokens as were asked for ("length"), or a full context. `text` is None without a
    tokenizer.
    """

    tokens: list[int] = field(default_factory=list)
    text: str | None = None
    ended: Ending = "length"


@dataclass(frozen=True)
class Request:
    """What is asked of the engine for a batch of prompts.

    `new`: tokens at most. `ends`: tokens that end a text. `context`: tokens the model can hold, or
    None. `stop` needs a tokenizer. `chunk`: columns of the prompts that are read at once.
    """

    prompts: Sequence[Sequence[int]]
    new: int
    sampling: Sampling = Sampling()
    ends: frozenset[int] = frozenset()
    stop: Sequence[str] = ()
    tokenizer: Any = None
    context: int | None = None
    chunk: int | None = None


@dataclass(frozen=True)
class Step:
    """One step of a batch: each sequence's new token and piece of text, None once it has ended.

    `depths`: after how many layers each token was decided, where tokens may leave early.
    """

    tokens: list[int | None]
    pieces: list[str | None]
    depths: list[int] | None = None


class Generation:
    """Runs a request; iterate over it for the steps as they come, then read `answers`."""

    def __init__(self, engine: Decoder, request: Request, timing: Timing | None = None) -> None:
        if request.stop and request.tokenizer is None:
            raise RequestError("stop: strings can only be found in text; give a tokenizer too.")
        self.timing = timing or Timing()
        self._engine = engine
        self._request = request
        self._rows = [_Row(request) for _ in request.prompts]

    @property
    def answers(self) -> list[Answer]:
        return [row.answer for row in self._rows]

    def __iter__(self) -> Iterator[Step]:
        request = self._request
        room, full = _room(request)
        start = time.perf_counter()
        logits, state = self._engine.prefill(request.prompts, room, chunk=request.chunk)
        batch, vocabulary = logits.shape
        device = logits.device
        sampler = Sampler(request.sampling, batch, vocabulary, device)
        _see(sampler, request.prompts)
        with alone(device):
            tokens = sampler.pick(logits)
        depths: list[int] | None = None
        # On a GPU the next step is under way before this one's tokens are read.
        ahead = device.type != "cpu"
        for index in range(room):
            last = index + 1 == room
            following = self._engine.decode(state, tokens) if ahead and not last else None
            values = tokens.tolist()
            with alone(device):
                check(logits)
            passed = time.perf_counter() - start
            if index:
                self.timing.steps.append(passed)
            else:
                self.timing.prefill_s = passed
            yield self._taken(values, depths)
            ended = [row.ended for row in self._rows]
            if last or all(ended):
                break
            state.idle = torch.tensor(ended, device=device) if any(ended) else None
            start = time.perf_counter()
            logits = self._engine.decode(state, tokens) if following is None else following
            depths = None if state.exits is None else state.exits.depths
            with alone(device):
                tokens = sampler.pick(logits)
        for row in self._rows:
            row.close("context" if full else "length")
        self._engine.settle(state)

    def _taken(self, values: list[int], depths: list[int] | None) -> Step:
        live = [not row.ended for row in self._rows]
        pairs = [row.add(token) for row, token in zip(self._rows, values, strict=True)]
        return Step(
            [pair[0] if was else None for pair, was in zip(pairs, live, strict=True)],
            [pair[1] if was else None for pair, was in zip(pairs, live, strict=True)],
            depths,
        )


class _Row:
    """One sequence on its way."""

    def __init__(self, request: Request) -> None:
        self.answer = Answer()
        self.ended = False
        self._ends = request.ends
        self._pieces = None if request.tokenizer is None else Pieces(request.tokenizer)
        self._stops = StopStrings(request.stop)
        self._text: list[str] = []

    def add(self, token: int) -> tuple[int | None, str | None]:
        """The token, if it belongs to the answer, and the text that is certain after it."""
        if self.ended:
            return None, None
        if token in self._ends:
            return None, self.close("end")
        self.answer.tokens.append(token)
        if self._pieces is None:
            return token, None
        piece = self._stops.add(self._pieces.add(token))
        self._text.append(piece)
        if self._stops.stopped is not None:
            self.close("stop")
        return token, piece

    def close(self, ending: Ending) -> str | None:
        """End the sequence, if it has not; the text that was held back."""
        if self.ended:
            return None
        self.ended = True
        self.answer.ended = ending
        if self._pieces is None:
            return None
        rest = ""
        if ending != "stop":
            rest = self._stops.add(self._pieces.rest()) + self._stops.rest()
            if self._stops.stopped is not None:
                self.answer.ended = "stop"
        self._text.append(rest)
        self.answer.text = "".join(self._text)
        return rest


def _room(request: Request) -> tuple[int, bool]:
    """Tokens that may follow, and whether the context and not the request is the limit."""
    longest = max(map(len, request.prompts), default=0)
    if request.context is None or longest + request.new <= request.context:
        return request.new, False
    return max(1, request.context - longest), True


def _see(sampler: Sampler, prompts: Sequence[Sequence[int]]) -> None:
    ids, pads = pad_left([list(prompt) for prompt in prompts], pad=0)
    sampler.see(ids, torch.arange(ids.shape[1]) >= pads[:, None])
