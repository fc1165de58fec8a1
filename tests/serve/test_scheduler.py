"""The scheduler: everyone is answered as if alone, in turn, and nobody harms the others."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests import families
from tests.contract.test_exits import exits
from tests.contract.test_experts import planned
from tests.tiny import byte_tokenizer
from torch import Tensor

from skimp.engine import Engine, Sampling
from skimp.engine.batching import Batch
from skimp.errors import RequestError
from skimp.serve.jobs import Busy, Job, Limits, Side, Stats, Ticket, Told
from skimp.serve.scheduler import Scheduler
from skimp.serve.work import Work

WAIT = 60.0  # seconds that a test waits for an event at most: nothing here takes one


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(families.build("llama"))


@contextmanager
def serving(engine: Engine, start: bool = True, **limits: Any) -> Iterator[Scheduler]:
    scheduler = Scheduler({"planned": engine}, byte_tokenizer(), Limits(**limits))
    if start:
        scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[tuple[int, ...]]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=random).tolist()
    return [
        tuple(torch.randint(2, families.VOCABULARY, (n,), generator=random).tolist())
        for n in lengths
    ]


def told(ticket: Ticket) -> list[Told]:
    return list(ticket.blocking(WAIT))


def tokens(events: list[Told]) -> list[int]:
    return [event.token for event in events if event.token is not None]


def at_rest(scheduler: Scheduler) -> Stats:
    """What was done once nobody runs: the last event comes a moment before its job has left."""
    end = time.monotonic() + WAIT
    while (found := scheduler.stats()).running or found.columns:
        assert time.monotonic() < end, found
        time.sleep(0.001)
    return found


class Gate:
    """Lets a batch decode only as far as a test has got."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = threading.Semaphore(0)
        self.open = threading.Event()
        decode = Batch.decode

        def gated(batch: Batch, tokens: Any) -> Tensor:
            while not self.open.is_set() and not self.steps.acquire(timeout=0.01):
                pass
            return decode(batch, tokens)

        monkeypatch.setattr(Batch, "decode", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(monkeypatch)
    yield found
    found.open.set()


def test_greedy_answers_are_the_engines_own(engine: Engine) -> None:
    """More jobs than places, of many lengths: tokens, text and ending of each."""
    asked = [(prompt, 3 + index % 9) for index, prompt in enumerate(prompts(12))]
    with serving(engine, batch=3, chunk=4) as scheduler:
        tickets = [scheduler.submit(Job(prompt, new)) for prompt, new in asked]
        answers = [told(ticket) for ticket in tickets]
        stats = at_rest(scheduler)
    for (prompt, new), events in zip(asked, answers, strict=True):
        (wanted,) = engine.generate([prompt], new, tokenizer=byte_tokenizer())
        assert tokens(events) == wanted.tokens
        assert "".join(event.text for event in events) == wanted.text
        assert events[-1].ended == wanted.ended == "length"
        assert all(event.ended is None for event in events[:-1])
    assert (stats.finished, stats.waiting, stats.running) == (12, 0, 0)
    assert stats.read == sum(len(prompt) for prompt, _ in asked)
    assert stats.emitted == sum(new for _, new in asked)
    assert max(stats.steps) == 3 and sum(n * k for n, k in stats.steps.items()) == (
        stats.emitted - len(asked)
    )


@pytest.mark.parametrize("family", ("mistral", "falcon-7b", "gemma3_text"))
def test_other_caches_are_served_alike(family: str) -> None:
    engine = Engine(families.build(family))
    with serving(engine, batch=4, chunk=8) as scheduler:
        tickets = [scheduler.submit(Job(prompt, 9)) for prompt in prompts(7)]
        answers = [tokens(told(ticket)) for ticket in tickets]
    for prompt, found in zip(prompts(7), answers, strict=True):
        assert found == engine.generate([prompt], 9)[0].tokens


def test_plans_whose_experts_are_shared_serve_one_by_one() -> None:
    model = families.build("llama")
    engine = Engine(model, planned(model, experts={"keep": 0.5, "batch": "shared"}))
    with serving(engine, batch=4) as scheduler:
        tickets = [scheduler.submit(Job(prompt, 6)) for prompt in prompts(3)]
        answers = [tokens(told(ticket)) for ticket in tickets]
        assert set(scheduler.stats().steps) == {1}
    for prompt, found in zip(prompts(3), answers, strict=True):
        assert found == engine.generate([prompt], 6)[0].tokens


def test_seeds_give_the_same_text_in_any_company(engine: Engine) -> None:
    settings = [
        Sampling(temperature=1.3, seed=4),
        Sampling(temperature=0.7, top_p=0.8, seed=4, repetition_penalty=1.3),
        Sampling(),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=2.0, top_k=5, seed=9),
    ]
    (prompt,) = prompts(1, seed=3)
    with serving(engine, batch=8) as scheduler:
        tickets = [scheduler.submit(Job(prompt, 12, sampling)) for sampling in settings]
        answers = [tokens(told(ticket)) for ticket in tickets]
    wanted = [engine.generate([prompt], 12, sampling=each)[0].tokens for each in settings]
    assert answers == wanted
    assert len({tuple(answer) for answer in answers}) > 3


def test_texts_end_where_they_should(engine: Engine) -> None:
    """At a stop string, which is never told; at an end token, unless those are ignored; at the end
    of the context."""
    tokenizer = byte_tokenizer()
    (prompt,) = prompts(1, seed=1)
    (plain,) = engine.generate([prompt], 12, tokenizer=tokenizer)
    assert plain.text is not None
    stop = plain.text[4:6]
    (stopped,) = engine.generate([prompt], 12, tokenizer=tokenizer, stop=[stop])
    context = engine.anatomy.context_length
    assert context is not None
    with serving(engine) as scheduler, pytest.MonkeyPatch.context() as patch:
        events = told(scheduler.submit(Job(prompt, 12, stop=(stop,))))
        assert "".join(event.text for event in events) == stopped.text
        assert events[-1].ended == "stop" and tokens(events) == stopped.tokens
        full = told(scheduler.submit(Job(tuple([3] * (context - 2)), 9)))
        assert (len(tokens(full)), full[-1].ended) == (2, "context")
        patch.setattr(Engine, "ends", frozenset([plain.tokens[5]]))
        cut = plain.tokens.index(plain.tokens[5])
        events = told(scheduler.submit(Job(prompt, 12)))
        assert tokens(events) == plain.tokens[:cut]
        assert (events[-1].token, events[-1].ended) == (None, "end")
        events = told(scheduler.submit(Job(prompt, 12, ignore_ends=True)))
        assert tokens(events) == plain.tokens


def test_logprobs_are_the_models_own(engine: Engine) -> None:
    """Of the emitted token, beside the likeliest; temperature does not come into it."""
    (prompt,) = prompts(1, seed=2)
    sampling = Sampling(temperature=3.0, seed=1)
    with serving(engine) as scheduler:
        plain = told(scheduler.submit(Job(prompt, 5, sampling)))
        alone = told(scheduler.submit(Job(prompt, 5, sampling, logprobs=0)))
        events = told(scheduler.submit(Job(prompt, 5, sampling, logprobs=3)))
    assert {(event.logprob, event.top) for event in plain} == {(None, ())}
    assert all(event.top == () and event.logprob is not None for event in alone)
    logits, state = engine.prefill([prompt], 6)
    for event in events:
        shares = logits[0].log_softmax(-1)
        assert event.token is not None
        assert event.logprob == pytest.approx(float(shares[event.token]), abs=1e-4)
        values, ids = shares.topk(3)
        assert [token for token, _ in event.top] == ids.tolist()
        assert [value for _, value in event.top] == pytest.approx(values.tolist(), abs=1e-4)
        logits = engine.decode(state, torch.tensor([event.token]))


def test_depths_are_told_where_tokens_may_leave() -> None:
    model = families.build("llama")
    engine = Engine(model, exits(model, threshold=0.0))
    with serving(engine) as scheduler:
        tickets = [scheduler.submit(Job(prompt, 4)) for prompt in prompts(3)]
        depths = [[event.depth for event in told(ticket)] for ticket in tickets]
    assert depths == [[4, 1, 1, 1]] * 3


@pytest.mark.parametrize("tokens_held", (None, 256))
def test_two_sides_share_a_thread(engine: Engine, tokens_held: int | None) -> None:
    """And the memory, whatever there is of it."""
    model = families.build("llama")
    thin = Engine(model, planned(model, drop={"layers": [1]}))
    limits = Limits(batch=2, tokens=tokens_held)
    scheduler = Scheduler({"planned": thin, "dense": engine}, None, limits)
    scheduler.start()
    asked = prompts(6)
    sides: tuple[Side, ...] = ("planned", "dense")
    pairs = [(prompt, side) for prompt in asked for side in sides]
    tickets = [scheduler.submit(Job(prompt, 7, side=side)) for prompt, side in pairs]
    answers = [tokens(told(ticket)) for ticket in tickets]
    scheduler.close()
    wanted = [each.generate([prompt], 7)[0].tokens for prompt in asked for each in (thin, engine)]
    assert answers == wanted


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
        tickets = [scheduler.submit(Job((1, 2), new)) for new in (9, 2, 5, 3, 7)]
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
        tickets = [scheduler.submit(Job((1, 2, 3), new)) for new in (4, 5, 6)]
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
        patch.setattr("skimp.engine.limits.available_bytes", lambda device: 10)
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


@pytest.mark.demo
def test_the_demo_model_answers_alike_in_any_company() -> None:
    """Greedy, in float32: what the engine says to each prompt alone."""
    import skimp

    loaded = skimp.load("demo", dtype="float32")
    engine, tokenizer = Engine(loaded.model), loaded.tokenizer
    assert tokenizer is not None
    texts = ["The capital of France is", "Once upon a time", "def main():\n", "2, 4, 6,"]
    asked = [tuple(tokenizer(text)["input_ids"]) for text in texts]
    scheduler = Scheduler({"planned": engine}, tokenizer, Limits(chunk=3))
    scheduler.start()
    tickets = [scheduler.submit(Job(prompt, 8)) for prompt in asked]
    answers = [told(ticket) for ticket in tickets]
    scheduler.close()
    for prompt, events in zip(asked, answers, strict=True):
        (wanted,) = engine.generate([prompt], 8, tokenizer=tokenizer)
        assert tokens(events) == wanted.tokens
        assert "".join(event.text for event in events) == wanted.text
