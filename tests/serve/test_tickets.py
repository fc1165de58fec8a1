"""A ticket takes events from one thread to another, or to an event loop."""

import asyncio
import threading
import time

import pytest

from skimp.errors import RequestError
from skimp.serve.jobs import Job, Limits, Ticket, Told

JOB = Job(prompt=(1, 2), new=3)
EVENTS = [Told(5, "a"), Told(6, "b"), Told(None, "", ended="end")]


def tell(ticket: Ticket, pause: float = 0.0) -> threading.Thread:
    def run() -> None:
        for event in EVENTS:
            time.sleep(pause)
            ticket.tell(event)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("pause", (0.0, 0.01))
def test_a_thread_reads_what_was_told(pause: float) -> None:
    ticket = Ticket(JOB)
    tell(ticket, pause)
    assert list(ticket.blocking(5)) == EVENTS
    assert ticket.ended == "end"
    assert list(ticket.blocking(5)) == []  # and does not wait for more


@pytest.mark.parametrize("pause", (0.0, 0.01))
def test_event_loops_read_what_was_told(pause: float) -> None:
    """One after the other: a ticket belongs to no loop."""

    async def some(ticket: Ticket, count: int) -> list[Told]:
        return [await anext(ticket) for _ in range(count)]

    async def rest(ticket: Ticket) -> list[Told]:
        return [told async for told in ticket]

    ticket = Ticket(JOB)
    tell(ticket, pause)
    assert asyncio.run(some(ticket, 1)) == EVENTS[:1]
    assert asyncio.run(rest(ticket)) == EVENTS[1:]
    assert asyncio.run(rest(ticket)) == []


def test_an_event_loop_is_not_held_up() -> None:
    async def both() -> list[str]:
        order = list[str]()
        ticket = Ticket(JOB)

        async def read() -> None:
            async for told in ticket:
                order.append(told.text)

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        order.append("goes on")
        tell(ticket)
        await reading
        return order

    assert asyncio.run(both()) == ["goes on", "a", "b", ""]


def test_a_reader_that_gives_up_leaves_the_events() -> None:
    """Its loop may even be gone when the next one comes."""
    ticket = Ticket(JOB)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(ticket), 0.01)

    asyncio.run(give_up())
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it complains of tasks that never end

    async def wait() -> Told:
        return await anext(ticket)

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    tell(ticket).join()
    assert list(ticket.blocking(5)) == EVENTS and not task.done()


def test_waiting_too_long_is_told() -> None:
    with pytest.raises(TimeoutError, match=r"no event of the job within 0\.01 s"):
        next(Ticket(JOB).blocking(0.01))


def test_nothing_follows_the_end() -> None:
    ticket = Ticket(JOB)
    ticket.tell(Told(None, ended="cancelled"))
    ticket.tell(Told(7, "late"))
    assert [told.ended for told in ticket.blocking(5)] == ["cancelled"]


def test_time_runs_from_the_submission() -> None:
    ticket = Ticket(Job((1,), 1, timeout_s=2.0))
    assert not ticket.expired(ticket.since + 1.9)
    assert ticket.expired(ticket.since + 2.0)
    assert not Ticket(JOB).expired(ticket.since + 1e9)


@pytest.mark.parametrize("name", ("batch", "waiting", "tokens", "chunk"))
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name}: 0 does not fit"):
        Limits(**{name: 0})
