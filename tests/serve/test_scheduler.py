"""The scheduler: everyone is answered as if alone, in turn, and nobody harms the others."""

import pytest
import torch
from tests import families
from tests.contract.test_exits import exits
from tests.contract.test_experts import planned
from tests.serve.scheduling import at_rest, prompts, serving, tokens, told
from tests.tiny import byte_tokenizer

from skimp.engine import Engine, Sampling
from skimp.serve.jobs import Job, Limits, Side
from skimp.serve.scheduler import Scheduler


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


@pytest.mark.parametrize("what", ("dense", "experts", "exits"))
def test_a_prompt_of_several_answers_is_read_once(what: str) -> None:
    """And each answer is what a request of its own would get; others come between unharmed."""
    model = families.build("llama")
    plans = {
        "dense": None,
        "experts": planned(model, experts={"keep": 0.5}),
        "exits": exits(model, threshold=0.0),
    }
    engine = Engine(model, plans[what])
    first, second = prompts(2, seed=3)
    jobs = [Job(first, 8, Sampling(temperature=1.5, seed=seed)) for seed in range(3)]
    jobs += [Job(second, 8), Job(first, 1), Job(first, 8)]
    with serving(engine, start=False, batch=4, chunk=8) as scheduler:
        tickets = [scheduler.submit(job) for job in jobs]
        scheduler.start()
        answers = [tokens(told(ticket)) for ticket in tickets]
        stats = at_rest(scheduler)
    for job, found in zip(jobs, answers, strict=True):
        assert found == engine.generate([job.prompt], job.new, sampling=job.sampling)[0].tokens
    assert len({tuple(answer) for answer in answers[:3]}) == 3
    assert stats.read == 2 * len(first) + len(second)


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
    pairs: list[tuple[tuple[int, ...], Side]] = [
        (prompt, side) for prompt in asked for side in sides
    ]
    tickets = [scheduler.submit(Job(prompt, 7, side=side)) for prompt, side in pairs]
    answers = [tokens(told(ticket)) for ticket in tickets]
    scheduler.close()
    wanted = [each.generate([prompt], 7)[0].tokens for prompt in asked for each in (thin, engine)]
    assert answers == wanted


def test_steps_can_be_made_beforehand(engine: Engine) -> None:
    """For every size a batch may have, and for no other."""
    made = list[int]()
    with serving(engine, start=False, batch=5) as scheduler, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "warm_up", lambda self, batch: made.append(batch))
        scheduler.warm_up()
    assert made == [1, 2, 4, 8]


@pytest.mark.demo
def test_the_demo_model_answers_alike_in_any_company() -> None:
    """Token by token what the engine says to each prompt alone, in bfloat16: native steps do not
    hang on the batch, and prompts are read alone."""
    import skimp

    loaded = skimp.load("demo", dtype="bfloat16")
    engine, tokenizer = Engine(loaded.model), loaded.tokenizer
    assert tokenizer is not None
    texts = ["The capital of France is", "Once upon a time", "def main():\n", "2, 4, 6,"]
    asked = [tuple(tokenizer(text)["input_ids"]) for text in texts]
    scheduler = Scheduler({"planned": engine}, tokenizer, Limits(batch=4))
    scheduler.warm_up()
    scheduler.start()
    tickets = [scheduler.submit(Job(prompt, 24 + at)) for at, prompt in enumerate(asked)]
    answers = [told(ticket) for ticket in tickets]
    scheduler.close()
    for at, (prompt, events) in enumerate(zip(asked, answers, strict=True)):
        (wanted,) = engine.generate([prompt], 24 + at, tokenizer=tokenizer)
        assert tokens(events) == wanted.tokens
        assert "".join(event.text for event in events) == wanted.text
