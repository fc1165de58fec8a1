"""`/v1/completions` through OpenAI's own client."""

from typing import Any

import pytest
from tests.cli.conftest import make_tokenizer
from tests.serve.serving import CONTEXT, Running

TOKENIZER = make_tokenizer()
PROMPT = "The river runs"
IDS = TOKENIZER(PROMPT)["input_ids"]
GREEDY = {"model": "tiny", "temperature": 0}


def expected(server: Running, ids: list[int], new: int, side: str = "planned") -> str:
    """What the fake scheduler writes."""
    from skimp.serve.jobs import Job

    job = Job(tuple(ids), new, side=side)  # type: ignore[arg-type]
    return TOKENIZER.decode([server.scheduler.token(job, i) for i in range(new)])


def test_a_prompt_is_continued(server: Running, client: Any) -> None:
    found = client.completions.create(prompt=PROMPT, max_tokens=9, **GREEDY)
    assert found.object == "text_completion"
    assert found.model == "tiny"
    [choice] = found.choices
    assert choice.text == expected(server, IDS, 9)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert found.usage.prompt_tokens == len(IDS)
    assert found.usage.completion_tokens == 9
    assert found.usage.total_tokens == len(IDS) + 9
    assert found.skimp["side"] == "planned"
    assert found.skimp["layers"] == 4
    assert 2 <= found.skimp["mean_exit_depth"] <= 4
    assert found.skimp["tokens_per_s"] > 0
    assert found.skimp["ttft_s"] > 0
    assert found.skimp["ended"] == "length"


def test_a_stream_is_the_same(server: Running, client: Any) -> None:
    chunks = list(
        client.completions.create(
            prompt=PROMPT,
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    )
    *body, last = chunks
    assert "".join(chunk.choices[0].text for chunk in body) == expected(server, IDS, 9)
    assert [chunk.choices[0].finish_reason for chunk in body[:-1]] == [None] * (len(body) - 1)
    assert body[-1].choices[0].finish_reason == "length"
    assert body[-1].skimp["mean_exit_depth"] is not None
    assert all(chunk.usage is None for chunk in body)
    assert last.choices == []
    assert last.usage.completion_tokens == 9
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_says_no_usage_unasked(client: Any) -> None:
    chunks = list(client.completions.create(prompt=PROMPT, max_tokens=3, stream=True, **GREEDY))
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_many_prompts_and_answers_of_each(server: Running, client: Any, stream: bool) -> None:
    prompts = ["The mill", "A bridge"]
    found = client.completions.create(prompt=prompts, n=2, max_tokens=5, stream=stream, **GREEDY)
    texts = [""] * 4
    for chunk in found if stream else [found]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    for index, text in enumerate(texts):
        ids = TOKENIZER(prompts[index // 2])["input_ids"]
        assert text == expected(server, ids, 5), index
    if not stream:
        read = sum(len(TOKENIZER(prompt)["input_ids"]) for prompt in prompts)
        assert found.usage.prompt_tokens == read
        assert found.usage.completion_tokens == 20
        assert found.skimp["ended"] == ["length"] * 4


@pytest.mark.parametrize("prompt", [IDS, [IDS], [IDS, IDS[:2]]])
def test_token_ids(server: Running, client: Any, prompt: Any) -> None:
    found = client.completions.create(prompt=prompt, max_tokens=5, **GREEDY)
    rows = prompt if isinstance(prompt[0], list) else [prompt]
    assert [c.text for c in found.choices] == [expected(server, row, 5) for row in rows]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [PROMPT, IDS])
def test_echo(server: Running, client: Any, prompt: Any, stream: bool) -> None:
    found = client.completions.create(
        prompt=prompt, max_tokens=4, echo=True, stream=stream, **GREEDY
    )
    text = "".join(c.choices[0].text for c in (found if stream else [found]))
    assert text == PROMPT + expected(server, IDS, 4)


def test_stop_strings(server: Running, client: Any) -> None:
    whole = expected(server, IDS, 20)
    stop = whole[6:8]
    for given in (stop, [stop, "never"]):
        found = client.completions.create(prompt=PROMPT, max_tokens=20, stop=given, **GREEDY)
        assert found.choices[0].text == whole[: whole.index(stop)]
        assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server: Running, client: Any, stream: bool) -> None:
    found = client.completions.create(
        prompt=PROMPT, max_tokens=6, logprobs=2, stream=stream, **GREEDY
    )
    parts = [c.choices[0] for c in (found if stream else [found])]
    told = [part.logprobs for part in parts if part.logprobs and part.logprobs.tokens]
    tokens = [token for part in told for token in part.tokens]
    assert len(tokens) == 6
    assert [value for part in told for value in part.token_logprobs] == [-1.0] * 6
    tops = [top for part in told for top in part.top_logprobs]
    assert all(set(top.values()) == {-1.0, -2.0} for top in tops)
    assert all(token in top for token, top in zip(tokens, tops, strict=True))
    offsets = [offset for part in told for offset in part.text_offset]
    # Each of these tokens is one character, or a part of one that shows as one.
    assert offsets == list(range(6))
    job = server.scheduler.seen[-1]
    shown = [TOKENIZER.decode([server.scheduler.token(job, i)]) for i in range(6)]
    for token, text in zip(tokens, shown, strict=True):
        assert token == text or (token.startswith("bytes:\\x") and text == "\ufffd")


def test_seeds_make_answers_differ_and_come_again(server: Running, client: Any) -> None:
    options = {"model": "tiny", "prompt": PROMPT, "n": 3, "max_tokens": 4, "temperature": 1}
    first = client.completions.create(seed=5, **options)
    again = client.completions.create(seed=5, **options)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 3
    single = client.completions.create(seed=6, **{**options, "n": 1})
    assert single.choices[0].text == texts[1]
    client.completions.create(seed=-1, **options)
    client.completions.create(**options)
    assert server.scheduler.seen[-1].sampling.seed != server.scheduler.seen[-4].sampling.seed


def test_settings_arrive(server: Running, client: Any) -> None:
    client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=2,
        temperature=0.5,
        top_p=0.25,
        seed=7,
        extra_body={"top_k": 9, "min_p": 0.125, "repetition_penalty": 1.5},
    )
    sampling = server.scheduler.seen[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.25, 7)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (9, 0.125, 1.5)
    client.completions.create(prompt=PROMPT, model="tiny", top_p=0, extra_body={"top_k": -1})
    assert server.scheduler.seen[-1].sampling.top_k == 1
    assert server.scheduler.seen[-1].new == 16


def test_what_says_nothing_is_no_matter(client: Any) -> None:
    client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=2,
        best_of=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        suffix=None,
        user="someone",
    )


def test_no_more_than_the_context_holds(server: Running, client: Any) -> None:
    found = client.completions.create(prompt=IDS * 20, max_tokens=5000, **GREEDY)
    assert found.usage.total_tokens == CONTEXT
    assert found.choices[0].finish_reason == "length"


def test_the_dense_side(server: Running, client: Any) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 9, "temperature": 0}
    dense = expected(server, IDS, 9, "dense")
    assert dense != expected(server, IDS, 9)
    by_name = client.completions.create(model="tiny:dense", **asked)
    by_side = client.completions.create(
        model="tiny", extra_body={"skimp": {"side": "dense"}}, **asked
    )
    for found in (by_name, by_side):
        assert found.choices[0].text == dense
        assert (found.skimp["side"], found.skimp["layers"]) == ("dense", 6)
    assert by_name.model == "tiny:dense"


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_told(server: Running, client: Any, stream: bool) -> None:
    found = client.completions.create(
        prompt=PROMPT,
        max_tokens=6,
        stream=stream,
        extra_body={"skimp": {"tokens": True}},
        **GREEDY,
    )
    if stream:
        tokens = [c.skimp for c in found if getattr(c, "skimp", None) and "id" in c.skimp]
    else:
        [tokens] = found.skimp["tokens"]
    job = server.scheduler.seen[-1]
    assert [t["id"] for t in tokens] == [server.scheduler.token(job, i) for i in range(6)]
    assert [t["depth"] for t in tokens] == [3, 4, 2, 3, 4, 2]


def test_an_end_brings_the_rest_of_the_text(server: Running) -> None:
    from tests.serve.serving import running

    with running(ends={tuple(IDS): "end"}) as own:
        for stream in (False, True):
            found = own.client().completions.create(
                prompt=PROMPT, max_tokens=30, stream=stream, **GREEDY
            )
            parts = list(found) if stream else [found]
            assert "".join(p.choices[0].text for p in parts) == expected(own, IDS, 3)
            assert parts[-1].choices[0].finish_reason == "stop"
            assert parts[-1].skimp["ended"] == "end"
