"""From a prompt to its answer: the decode loop, its endings, and its text."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from skimp.engine.answers import Answer, Row
from skimp.engine.quiet import alone
from skimp.engine.runners import pad_left
from skimp.engine.sampling import Sampler, Sampling, check
from skimp.engine.state import State


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
        self.timing = timing or Timing()
        self._engine = engine
        self._request = request
        self._rows = [Row(request.ends, request.tokenizer, request.stop) for _ in request.prompts]

    @property
    def answers(self) -> list[Answer]:
        return [row.answer for row in self._rows]

    def __iter__(self) -> Iterator[Step]:
        request = self._request
        longest = max(map(len, request.prompts), default=0)
        room, full = room_for(longest, request.new, request.context)
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


def room_for(prompt: int, new: int, context: int | None) -> tuple[int, bool]:
    """Tokens that may follow a prompt of so many, and whether the context and not what was asked
    for (`new`) is the limit."""
    if context is None or prompt + new <= context:
        return new, False
    return max(1, context - prompt), True


def _see(sampler: Sampler, prompts: Sequence[Sequence[int]]) -> None:
    ids, pads = pad_left([list(prompt) for prompt in prompts], pad=0)
    sampler.see(ids, torch.arange(ids.shape[1]) >= pads[:, None])
