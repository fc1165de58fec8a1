"""The scheduler's turns: who is taken when, who leaves, and that nobody harms the others."""

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from tests.serve.scheduling import WAIT, Gate, at_rest, prompts, serving, tokens, told
from torch import Tensor

from skimp.engine import Engine
from skimp.engine.batching import Batch
from skimp.errors import RequestError
from skimp.serve.jobs import Busy, Job, Limits
from skimp.serve.scheduler import Scheduler
from skimp.serve.work import Work


def test_what_cannot_be_served_is_refused_at_once(engine: Engine) -> None:
    with serving(engine, start=False, tokens=40) as scheduler:
        for job, message in (
            (Job((), 3), "prompt 0: it has no tokens"),
            (Job((1, 999), 3), "prompt 0: token 999"),
            (Job((1,), 0), "new: 0 tokens"),
            (Job((1,) * 64, 3), "fill the model's context"),
            (Job((1,) * 30, 20), "prompt: with its answer it may come to 50 tokens"),
            (Job((1,), 3, stop=("",)), "stop 0: it is empty"),
            (Job((1,), 3, side="dense"), "side: 'dense' is not served here; use planned"),
            (Job((1,), 3, logprobs=-1), "logprobs: -1"),
            (Job((1,), 3, timeout_s=0.0), "timeout_s: 0"),
        ):
            with pytest.raises(RequestError, match=message):
                scheduler.submit(job)
        assert scheduler.stats().waiting == 0


def test_a_full_queue_takes_no_more(engine: Engine, gate: Gate) -> None:
    with serving(engine, start=False, waiting=2) as scheduler:
        tickets = [scheduler.submit(Job((1, 2), 3)) for _ in range(2)]
        with pytest.raises(Busy, match="2 jobs are waiting and no more are taken"):
            scheduler.submit(Job((1, 2), 3))
        assert scheduler.stats().refused == 1
        gate.open.set()
        scheduler.start()
        assert [told(ticket)[-1].ended for ticket in tickets] == ["length"] * 2
        assert told(scheduler.submit(Job((1, 2), 3)))[-1].ended == "length"


def test_first_come_first_served(engine: Engine) -> None:
    began = list[int]()
    read_on = Work.read_on

    def noted(work: Work, *args: Any) -> Any:
        began.append(work.ticket.job.new)
        return read_on(work, *args)

    with serving(engine, start=False, batch=2) as scheduler, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "read_on", noted)
        tickets = [scheduler.submit(Job((1, new), new)) for new in (9, 2, 5, 3, 7)]
        scheduler.start()
        for ticket in tickets:
            told(ticket)
    assert began == [9, 2, 5, 3, 7]


def test_a_long_prompt_holds_nobody_up(engine: Engine) -> None:
    """Between two pieces of it everyone who runs gets a token; short ones are read together."""
    order = list[str]()
    read_on, decode = Work.read_on, Batch.decode

    def reading(work: Work, tokens: int, room: int) -> Any:
        order.append(f"read {tokens}")
        return read_on(work, tokens, room)

    def decoding(batch: Batch, tokens: Any) -> Tensor:
        order.append("step")
        return decode(batch, tokens)

    with serving(engine, start=False, chunk=8) as scheduler, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "read_on", reading)
        patch.setattr(Batch, "decode", decoding)
        jobs = Job((5,) * 3, 12), Job((6,) * 5, 12), Job((7,) * 20, 2)
        tickets = [scheduler.submit(job) for job in jobs]
        scheduler.start()
        for ticket in tickets:
            told(ticket)
    assert order[:8] == [
        *("read 3", "read 5", "step"),
        *("read 8", "step", "read 8", "step"),
        "read 4",
    ]


def test_cancelled_jobs_leave_and_others_go_on(engine: Engine, gate: Gate) -> None:
    """Wherever they are: running, being read or waiting."""
    first, second, third = prompts(3, seed=4)
    with serving(engine, batch=2) as scheduler:
        running = [scheduler.submit(Job(prompt, 20)) for prompt in (first, second)]
        waiting = scheduler.submit(Job(third, 20))
        events = running[0].blocking(WAIT)
        next(events)
        gate.steps.release()
        next(events)
        running[0].cancel()
        waiting.cancel()
        gate.open.set()
        seen = list(events)
        assert seen[-1].ended == "cancelled"
        assert len(tokens(seen)) <= 2, "the work went on"
        assert [event.ended for event in told(waiting)] == ["cancelled"]
        assert tokens(told(running[1])) == engine.generate([second], 20)[0].tokens
        stats = at_rest(scheduler)
        assert (stats.cancelled, stats.finished, stats.running) == (2, 1, 0)
        running[1].cancel()  # after its end: nothing happens
        assert scheduler.stats().cancelled == 2


def test_time_may_run_out(engine: Engine, gate: Gate) -> None:
    """While a job waits, or while it runs; what it has said by then stands."""
    with serving(engine, batch=1) as scheduler:
        runs = scheduler.submit(Job((1, 2), 20, timeout_s=0.3))
        waits = scheduler.submit(Job((1, 2), 20, timeout_s=0.1))
        after = scheduler.submit(Job((1, 2), 3))
        events = runs.blocking(WAIT)
        next(events)
        threading.Event().wait(0.35)
        gate.open.set()
        assert [event.ended for event in events][-1] == "timeout"
        assert [event.ended for event in told(waits)] == ["timeout"]
        assert told(after)[-1].ended == "length"
        assert scheduler.stats().timed_out == 2


def test_an_error_ends_those_concerned_and_no_one_else(engine: Engine) -> None:
    decode, fails = Batch.decode, [True]

    def failing(batch: Batch, tokens: Any) -> Tensor:
        if fails:
            fails.clear()
            raise MemoryError("made up")
        return decode(batch, tokens)

    with serving(engine, start=False, batch=2) as scheduler, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "decode", failing)
        tickets = [scheduler.submit(Job((1, 2, 3), 4)) for _ in range(3)]
        scheduler.start()
        ends = [told(ticket)[-1] for ticket in tickets]
        assert [end.ended for end in ends] == ["error", "error", "length"]
        assert ends[0].error == (
            "the engine failed at this job (MemoryError: made up); try it again."
        )
        assert scheduler.stats().failed == 2


def test_a_prompt_that_fails_fails_alone(engine: Engine) -> None:
    read_on = Work.read_on

    def failing(work: Work, *args: Any) -> Any:
        if work.ticket.job.new == 5:
            raise ValueError("made up")
        return read_on(work, *args)

    with serving(engine, start=False) as scheduler, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "read_on", failing)
        tickets = [scheduler.submit(Job((1, 2, new), new)) for new in (4, 5, 6)]
        scheduler.start()
        assert [told(ticket)[-1].ended for ticket in tickets] == ["length", "error", "length"]


def test_numbers_gone_wrong_end_their_own_job(engine: Engine) -> None:
    decode, at = Batch.decode, [0]

    def spoiling(batch: Batch, tokens: Any) -> Tensor:
        logits = decode(batch, tokens).clone()
        at[0] += 1
        if at[0] == 2:
            logits[1] = torch.nan
        return logits

    asked = prompts(3, seed=6)
    with serving(engine, start=False) as scheduler, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "decode", spoiling)
        tickets = [scheduler.submit(Job(prompt, 8)) for prompt in asked]
        scheduler.start()
        answers = [told(ticket) for ticket in tickets]
    assert [events[-1].ended for events in answers] == ["length", "error", "length"]
    assert "NaN or infinity" in (answers[1][-1].error or "")
    for index in (0, 2):
        wanted = engine.generate([asked[index]], 8)[0].tokens
        assert tokens(answers[index]) == wanted


def test_a_mistake_of_the_scheduler_is_survived(engine: Engine) -> None:
    with serving(engine, start=False) as scheduler, pytest.MonkeyPatch.context() as patch:
        fails = [True]
        read = Scheduler._read

        def failing(self: Scheduler, sides: Any) -> None:
            if fails:
                fails.clear()
                raise KeyError("made up")
            read(self, sides)

        patch.setattr(Scheduler, "_read", failing)
        first = scheduler.submit(Job((1, 2), 3))
        scheduler.start()
        assert told(first)[-1].ended == "error"
        assert told(scheduler.submit(Job((1, 2), 3)))[-1].ended == "length"


def test_memory_makes_jobs_wait_and_never_fail(engine: Engine) -> None:
    """Columns of all that run stay within the limit, and everyone is served in the end."""
    seen = list[int]()
    decode = Batch.decode

    def watching(batch: Batch, tokens: Any) -> Tensor:
        seen.append(batch.columns)
        return decode(batch, tokens)

    with (
        serving(engine, start=False, tokens=256) as scheduler,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(Batch, "decode", watching)
        tickets = [scheduler.submit(Job((1, 2, 3), 6)) for _ in range(6)]
        scheduler.start()
        assert [told(ticket)[-1].ended for ticket in tickets] == ["length"] * 6
    assert max(seen) == 256


def test_a_job_for_which_there_is_no_memory_says_so(engine: Engine) -> None:
    with serving(engine, start=False) as scheduler, pytest.MonkeyPatch.context() as patch:
        patch.setattr("skimp.engine.limits.available_bytes", lambda _: 10)
        ticket = scheduler.submit(Job((1, 2), 3))
        scheduler.start()
        (end,) = told(ticket)
        assert end.ended == "error" and "there is not the memory" in (end.error or "")


def test_closing_lets_jobs_finish(engine: Engine) -> None:
    scheduler = Scheduler({"planned": engine}, None, Limits(batch=1))
    scheduler.start()
    tickets = [scheduler.submit(Job((1, 2), 20)) for _ in range(2)]
    scheduler.close(grace_s=WAIT)
    assert [told(ticket)[-1].ended for ticket in tickets] == ["length"] * 2
    with pytest.raises(Busy, match="the server is closing"):
        scheduler.submit(Job((1, 2), 20))
    scheduler.close()


def test_closing_at_once_cancels(engine: Engine, gate: Gate) -> None:
    scheduler = Scheduler({"planned": engine}, None, Limits(batch=1))
    scheduler.start()
    tickets = [scheduler.submit(Job((1, 2), 20)) for _ in range(3)]
    next(tickets[0].blocking(WAIT))
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    threading.Event().wait(0.05)
    gate.open.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    assert [told(ticket)[-1].ended for ticket in tickets] == ["cancelled"] * 3


def test_closing_what_never_started(engine: Engine) -> None:
    scheduler = Scheduler({"planned": engine}, None, Limits())
    ticket = scheduler.submit(Job((1, 2), 3))
    scheduler.close(grace_s=WAIT)
    assert [event.ended for event in told(ticket)] == ["cancelled"]


def test_event_loops_are_served(engine: Engine) -> None:
    async def answer(scheduler: Scheduler, prompt: tuple[int, ...]) -> list[int]:
        return [each.token async for each in scheduler.submit(Job(prompt, 6)) if each.token]

    async def several(scheduler: Scheduler) -> list[list[int]]:
        return await asyncio.gather(*(answer(scheduler, prompt) for prompt in prompts(5)))

    with serving(engine) as scheduler:
        found = asyncio.run(several(scheduler))
    wanted = [engine.generate([prompt], 6)[0].tokens for prompt in prompts(5)]
    assert found == [[token for token in answer if token] for answer in wanted]


def test_nothing_is_kept_of_jobs_that_ended(engine: Engine) -> None:
    """Nor of those whose clients never read a word."""
    with serving(engine, batch=2) as scheduler:
        refs = [weakref.ref(scheduler.submit(Job((1, 2), 3))) for _ in range(4)]
        told(scheduler.submit(Job((1, 2), 3)))
        at_rest(scheduler)
        told(scheduler.submit(Job((1, 2), 1)))
        at_rest(scheduler)
        gc.collect()
        assert [ref() for ref in refs] == [None] * 4
