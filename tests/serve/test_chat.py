"""`/v1/chat/completions` through OpenAI's own client."""

from typing import Any

import pytest
from tests.serve.serving import Running, chatting, running
from tests.serve.test_completions import TOKENIZER, expected

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "The river?"},
]
TEXT = "[system] Be brief.\n[user] The river?\n[assistant]"
IDS = TOKENIZER(TEXT, add_special_tokens=False)["input_ids"]
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "messages": MESSAGES}


def test_a_chat_is_answered(server: Running, client: Any) -> None:
    found = client.chat.completions.create(max_tokens=9, **GREEDY)
    assert found.object == "chat.completion"
    [choice] = found.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected(server, IDS, 9)
    assert choice.finish_reason == "length"
    assert found.usage.prompt_tokens == len(IDS)
    assert found.usage.completion_tokens == 9
    assert found.skimp["side"] == "planned"


def test_a_stream_is_the_same(server: Running, client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            max_completion_tokens=9, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    first, *_, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == expected(server, IDS, 9)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-2].skimp["ended"] == "length"
    assert usage.choices == []
    assert usage.usage.total_tokens == len(IDS) + 9


def test_the_client_s_own_stream_helper(server: Running, client: Any) -> None:
    whole = expected(server, IDS, 20)
    stop = whole[6:8]
    with client.chat.completions.stream(max_tokens=20, stop=stop, **GREEDY) as stream:
        for _ in stream:
            pass
        found = stream.get_final_completion()
    assert found.choices[0].message.content == whole[: whole.index(stop)]


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(server: Running, client: Any, stream: bool) -> None:
    found = client.chat.completions.create(n=3, max_tokens=5, stream=stream, **GREEDY)
    texts = [""] * 3
    for chunk in found if stream else [found]:
        for choice in chunk.choices:
            texts[choice.index] += (choice.delta if stream else choice.message).content or ""
    assert texts == [expected(server, IDS, 5)] * 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("top", [None, 0, 3])
def test_logprobs(client: Any, stream: bool, top: int | None) -> None:
    extra = {} if top is None else {"top_logprobs": top}
    found = client.chat.completions.create(
        max_tokens=6, logprobs=True, stream=stream, **extra, **GREEDY
    )
    parts = [c.choices[0] for c in (found if stream else [found])]
    entries = [entry for part in parts if part.logprobs for entry in part.logprobs.content]
    assert len(entries) == 6
    assert all(entry.logprob == -1.0 for entry in entries)
    assert all(len(entry.top_logprobs) == (top or 0) for entry in entries)
    text = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace")
    said = "".join(((p.delta if stream else p.message).content or "") for p in parts)
    assert text == said


def test_parts_of_text_and_the_developer_s_role(server: Running, client: Any) -> None:
    parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "river?"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "me"},
    ]
    found = client.chat.completions.create(**{**GREEDY, "messages": messages}, max_tokens=5)
    assert found.choices[0].message.content == expected(server, IDS, 5)


def test_an_answer_may_be_sent_back(client: Any) -> None:
    found = client.chat.completions.create(max_tokens=4, **GREEDY)
    turns = [*MESSAGES, found.choices[0].message, {"role": "user", "content": "And then?"}]
    client.chat.completions.create(**{**GREEDY, "messages": turns}, max_tokens=4)
    dumped = found.choices[0].message.model_dump()
    turns = [*MESSAGES, dumped, {"role": "user", "content": "And then?"}]
    client.chat.completions.create(**{**GREEDY, "messages": turns}, max_tokens=4)


def test_what_asks_for_nothing_is_no_matter(client: Any) -> None:
    client.chat.completions.create(
        **GREEDY,
        max_tokens=2,
        tools=[],
        response_format={"type": "text"},
        modalities=["text"],
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        user="someone",
    )


def test_how_long_answers_are_unasked(server: Running, client: Any) -> None:
    from tests.serve.serving import CONTEXT

    found = client.chat.completions.create(**GREEDY)
    assert found.usage.total_tokens == CONTEXT


def test_a_model_without_a_template(server: Running) -> None:
    import openai

    tokenizer = chatting()
    tokenizer.chat_template = None
    with (
        running(tokenizer=tokenizer) as own,
        pytest.raises(openai.BadRequestError, match="no chat template; use /v1/completions") as no,
    ):
        own.client().chat.completions.create(**GREEDY)
    assert no.value.code == "no_chat_template"


def test_a_template_that_refuses(client: Any) -> None:
    import openai

    messages = [{"role": "assistant", "content": "I begin."}]
    with pytest.raises(openai.BadRequestError, match="roles must take turns"):
        client.chat.completions.create(**{**GREEDY, "messages": messages})
