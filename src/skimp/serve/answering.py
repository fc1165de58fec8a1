"""One request's answers on their way: jobs handed in, events taken, figures kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from skimp.errors import RequestError
from skimp.serve.faults import Fault
from skimp.serve.jobs import Busy, Job, Stats, Ticket, Told
from skimp.serve.metrics import Metrics
from skimp.serve.protocol import Ask
from skimp.serve.shapes import Choice, Shape
from skimp.serve.terms import Terms

_USUAL_NEW = 1024  # tokens of a chat's answer, where nobody says how many


class Scheduling(Protocol):
    """What is needed of a scheduler."""

    def submit(self, job: Job) -> Ticket:
        """Queue a job; Busy or RequestError if it is not taken."""
        ...

    def stats(self) -> Stats:
        """Its figures."""
        ...

    def close(self, grace_s: float) -> None:
        """Take no more jobs, let those that run end for so long, and stop."""
        ...


def jobs(ask: Ask, prompts: Sequence[tuple[int, ...]], terms: Terms) -> list[Job]:
    """The jobs of a request, in the order of its choices.

    Raises:
        Fault: a prompt leaves no room in the model's context.
    """
    return [
        Job(
            prompt=prompt,
            new=_room(ask, prompt, terms, row if len(prompts) > 1 else None),
            # Answers to one prompt differ, and each is what a request of its own would get.
            sampling=replace(ask.sampling, seed=ask.sampling.seed + copy),
            stop=ask.stop,
            logprobs=ask.logprobs,
            side=ask.side,  # type: ignore[arg-type]
            ignore_ends=ask.ignore_ends,
            timeout_s=ask.timeout_s,
        )
        for row, prompt in enumerate(prompts)
        for copy in range(ask.n)
    ]


def _room(ask: Ask, prompt: tuple[int, ...], terms: Terms, row: int | None) -> int:
    wanted = ask.new or min(terms.new or _USUAL_NEW, _USUAL_NEW)
    if terms.context is None:
        return wanted
    room = terms.context - len(prompt)
    if room > 0:
        return min(wanted, room)
    param = "messages" if ask.chat else "prompt" if row is None else f"prompt[{row}]"
    raise Fault(
        400,
        f"{param}: {len(prompt)} tokens leave no room in the model's context of {terms.context}; "
        "shorten it.",
        param,
        "context_length_exceeded",
    )


class Answering:
    """The jobs of one request under way; `cancel` gives up whatever is not finished."""

    def __init__(
        self,
        ask: Ask,
        wanted: Sequence[Job],
        choices: Sequence[Choice],
        metrics: Metrics,
        layers: int,
    ) -> None:
        """`layers`: how many the asked side has, for the share that was run of them."""
        self.ask, self.choices = ask, choices
        self._jobs, self._metrics, self._layers = wanted, metrics, layers
        self._tickets: list[Ticket] = []
        self._since = time.perf_counter()
        # Each prompt is read for every one of its answers, but counts once, as OpenAI has it.
        self._read = sum(len(job.prompt) for job in wanted[:: ask.n])

    def submit(self, scheduler: Scheduling) -> None:
        """Hand the jobs in, all or none.

        Raises:
            Fault: the queue is full (429), the scheduler is closing (503) or a job does not fit.
        """
        try:
            for job in self._jobs:
                self._tickets.append(scheduler.submit(job))
        except Busy as error:
            self.cancel()
            message = f"server: {error}"
            raise Fault(429, message, None, "queue_full", {"Retry-After": "1"}) from error
        except RequestError as error:
            self.cancel()
            name = str(error).partition(":")[0].split(" ")[0]
            raise Fault(400, str(error), name, "invalid_value") from error
        self._metrics.read(self.ask.side, self._read)

    def cancel(self) -> None:
        """Want no more of it."""
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self, keep_alive_s: float) -> AsyncGenerator[tuple[Choice, Told] | None]:
        """Events of all answers as they come; None whenever nothing came for so long.

        Raises:
            Fault: an answer failed, took too long, or was cut off by the server's end.
        """
        queue: asyncio.Queue[tuple[Choice, Told]] = asyncio.Queue()
        pumps = [
            asyncio.create_task(_pump(choice, ticket, queue))
            for choice, ticket in zip(self.choices, self._tickets, strict=True)
        ]
        left = len(pumps)
        try:
            while left:
                try:
                    async with asyncio.timeout(keep_alive_s):
                        choice, told = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                self._take(choice, told)
                yield choice, told
                left -= told.ended is not None
        finally:
            for pump in pumps:
                pump.cancel()
            self.cancel()

    def _take(self, choice: Choice, told: Told) -> None:
        _check(told, self.ask.timeout_s)
        now = time.perf_counter()
        if told.token is not None:
            gap = None if choice.last is None else now - choice.last
            self._metrics.token(self.ask.side, gap, now - self._since, told.depth)
            choice.first = choice.first or now
            choice.last = now
            choice.tokens += 1
            if told.depth is not None:
                choice.depths.append(told.depth)
        choice.text.append(told.text)
        if self.ask.logprobs is not None or self.ask.tokens:
            choice.told.append(told)
        choice.ended = told.ended

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        written = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self._read,
            "completion_tokens": written,
            "total_tokens": self._read + written,
        }

    def figures(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The object `skimp` of an answer: speeds, and how deep its tokens went."""
        firsts = [choice.first for choice in choices if choice.first is not None]
        lasts = [choice.last for choice in choices if choice.last is not None]
        after = sum(choice.tokens for choice in choices) - len(firsts)
        seconds = max(lasts) - min(firsts) if firsts else 0.0
        depths = [depth for choice in choices for depth in choice.depths]
        found = {
            "side": self.ask.side,
            "ttft_s": round(min(firsts) - self._since, 6) if firsts else None,
            "tokens_per_s": round(after / seconds, 3) if after and seconds > 0 else None,
            "layers": self._layers,
            "mean_exit_depth": round(sum(depths) / len(depths), 3) if depths else None,
            "ended": choices[0].ended if len(choices) == 1 else [c.ended for c in choices],
        }
        if self.ask.tokens:
            found["tokens"] = [[_token(told) for told in choice.told] for choice in choices]
        return found


def _token(told: Told) -> dict[str, Any]:
    return {"id": told.token, "depth": told.depth}


def _check(told: Told, timeout_s: float | None) -> None:
    if told.ended == "error":
        raise Fault(500, f"server: {told.error or 'the answer failed.'}", None, "failed")
    if told.ended == "timeout":
        limit = "its limit" if timeout_s is None else f"{timeout_s:g} s"
        raise Fault(
            504,
            f"server: the answer took longer than {limit}; ask for fewer tokens.",
            None,
            "timeout",
        )
    if told.ended == "cancelled":
        raise Fault(503, "server: it is closing; ask another one.", None, "closing")


async def _pump(choice: Choice, ticket: Ticket, queue: asyncio.Queue[tuple[Choice, Told]]) -> None:
    try:
        async for told in ticket:
            queue.put_nowait((choice, told))
    except Exception as error:  # else the request would wait for ever
        queue.put_nowait((choice, Told(None, ended="error", error=f"{type(error).__name__}.")))
        raise


def whole(answering: Answering, shape: Shape) -> dict[str, Any]:
    """The finished answer as one document."""
    found = shape.whole(answering.choices)
    found["usage"] = answering.usage()
    found["skimp"] = answering.figures(answering.choices)
    return found


class Chunks:
    """The documents of a stream, event by event."""

    def __init__(self, answering: Answering, shape: Shape) -> None:
        self._answering, self._shape = answering, shape

    def opening(self) -> Iterator[dict[str, Any]]:
        """Before the first token."""
        for choice in self._answering.choices:
            for chunk in self._shape.opening(choice):
                yield self._dressed(chunk)

    def of(self, choice: Choice, told: Told) -> Iterator[dict[str, Any]]:
        """What an event is worth saying."""
        ask = self._answering.ask
        if told.text or (told.token is not None and (ask.tokens or ask.logprobs is not None)):
            chunk = self._shape.piece(choice, told)
            if ask.tokens and told.token is not None:
                chunk["skimp"] = _token(told)
            yield self._dressed(chunk)
        if told.ended is not None:
            chunk = self._shape.closing(choice)
            figures = self._answering.figures([choice])
            figures.pop("tokens", None)  # they were told one by one
            chunk["skimp"] = figures
            yield self._dressed(chunk)

    def closing(self) -> Iterator[dict[str, Any]]:
        """After the last token."""
        if self._answering.ask.usage:
            yield {**self._shape.usage(), "usage": self._answering.usage()}

    def _dressed(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """With the usage that is not there yet, where there will be one: so OpenAI has it."""
        return {**chunk, "usage": None} if self._answering.ask.usage else chunk
