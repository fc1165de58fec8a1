"""What cannot be served is refused by a sentence that names the field and the remedy."""

import json
import random
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.serving import CONTEXT, Running, chatting, running

from skimp.serve.faults import Fault
from skimp.serve.fields import parse
from skimp.serve.protocol import read_chat, read_completion
from skimp.serve.terms import Settings, Terms

TERMS = Terms({"tiny": "planned", "tiny:dense": "dense"}, CONTEXT, 300, True, choices=8, new=100)
COMPLETION = {"prompt": "The river"}
CHAT = {"messages": [{"role": "user", "content": "The river?"}]}

BOTH: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model"),
    ({"n": 0}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 9}, "n"),
    ({"n": 10**30}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 101}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": [5]}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": False}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": -1}, "top_p"),
    ({"top_p": {}}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 0.5}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"stop": 3}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a", 3]}, "stop[1]"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "a" * 257}, "stop"),
    ({"stop": "\ud800"}, "stop"),
    ({"stream": 1}, "stream"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": 3}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": -0.5}, "presence_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"temprature": 1}, "temprature"),
    ({"\ud800": 1}, "\ud800"),
    ({"x" * 500: 1}, "x" * 64 + "…"),
    ({"skimp": True}, "skimp"),
    ({"skimp": {"side": "left"}}, "skimp.side"),
    ({"skimp": {"side": 1}}, "skimp.side"),
    ({"skimp": {"sides": "dense"}}, "skimp.sides"),
    ({"model": "tiny:dense", "skimp": {"side": "planned"}}, "skimp.side"),
    ({"skimp": {"ignore_ends": True}}, "skimp.ignore_ends"),
    ({"skimp": {"timeout_s": 0}}, "skimp.timeout_s"),
    ({"skimp": {"tokens": "yes"}}, "skimp.tokens"),
]
COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": ["a", ""]}, "prompt[1]"),
    ({"prompt": ["a", [1]]}, "prompt[1]"),
    ({"prompt": [[1], "a"]}, "prompt[1]"),
    ({"prompt": ["a", 3]}, "prompt[1]"),
    ({"prompt": [1, "a"]}, "prompt[1]"),
    ({"prompt": [1, 2.5]}, "prompt[1]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [None]}, "prompt[0]"),
    ({"prompt": [300]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": [[1, 10**40]]}, "prompt[0][1]"),
    ({"prompt": "half \ud800"}, "prompt"),
    ({"prompt": ["a"] * 9}, "prompt"),
    ({"prompt": ["a"] * 3, "n": 3}, "n"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "end"}, "suffix"),
    ({"messages": []}, "messages"),
]
CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [3]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "bard", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "nmae": "b"}]}, "messages[0].nmae"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages[0].content[0].text",
    ),
    (
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]},
        "messages[0].tool_calls",
    ),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"prompt": "hi"}, "prompt"),
]
CASES = [
    *(("/v1/completions", COMPLETION, change, named) for change, named in [*BOTH, *COMPLETIONS]),
    *(("/v1/chat/completions", CHAT, change, named) for change, named in [*BOTH, *CHATS]),
]


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A server with a limit for everything."""
    with running(Settings(new=100, body_bytes=4096)) as found:
        yield found


def check_error(found: httpx.Response, status: int, param: str | None) -> str:
    assert found.status_code == status, found.text
    assert set(found.json()) == {"error"}
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    message = error["message"]
    assert message.endswith(("?", ".")), message
    assert "\n" not in message
    assert len(message) < 400
    if param is not None:
        assert message.startswith(f"{param}: "), message
    return message


@pytest.mark.parametrize(("path", "good", "change", "named"), CASES)
def test_a_field_that_does_not_fit(
    small: Running, path: str, good: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    raw = json.dumps({**good, **change}).encode()
    found = httpx.post(small.url + path, content=raw, headers={"Content-Type": "application/json"})
    check_error(found, 400, named)


def test_no_more_than_the_server_gives_unasked() -> None:
    for new, completion in ((None, 16), (100, 16), (8, 8)):
        terms = Terms({"tiny": "planned"}, CONTEXT, 300, True, new=new)
        assert read_completion(COMPLETION, terms).new == completion


def test_the_likely_field_is_named(small: Running) -> None:
    found = httpx.post(f"{small.url}/v1/completions", json={**COMPLETION, "temprature": 1})
    assert "did you mean temperature?" in check_error(found, 400, "temprature")


def test_another_model(small: Running) -> None:
    found = httpx.post(f"{small.url}/v1/completions", json={**COMPLETION, "model": "gpt-5"})
    assert "give tiny and tiny:dense" in check_error(found, 404, "model").replace("or", "and")
    found = httpx.get(f"{small.url}/v1/models/gpt-5")
    check_error(found, 404, "model")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompts_longer_than_the_context(small: Running, path: str) -> None:
    body = {"prompt": "a b " * 300} if path.endswith("v1/completions") else None
    body = body or {"messages": [{"role": "user", "content": "a b " * 300}]}
    found = httpx.post(small.url + path, json=body)
    message = check_error(found, 400, "prompt" if "prompt" in body else "messages")
    assert f"context of {CONTEXT}" in message
    assert found.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"prompt"',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 3000 + b"]" * 500 + b"}",
        b'{"n": ' + b"9" * 4000 + b"}",
        b"\x00" * 10,
    ],
)
def test_bodies_that_are_no_json_object(small: Running, raw: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        found = httpx.post(
            small.url + path, content=raw, headers={"Content-Type": "application/json"}
        )
        assert "body: " in check_error(found, 400, found.json()["error"]["param"]) or b"n" in raw


def test_bodies_that_are_too_large(small: Running) -> None:
    for size in (5000, 200_000, 3_000_000, 20_000_000):
        found = httpx.post(f"{small.url}/v1/completions", json={"prompt": "a" * size})
        assert "4096" in check_error(found, 413, None)

    def parts() -> Iterator[bytes]:  # no Content-Length
        for _ in range(100):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    found = httpx.post(f"{small.url}/v1/completions", content=parts(), headers=headers)
    check_error(found, 413, None)


def test_bodies_of_another_kind(small: Running) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}):
        found = httpx.post(
            f"{small.url}/v1/completions", content=json.dumps(COMPLETION), headers=headers
        )
        assert "application/json" in check_error(found, 415, None)


def test_bodies_that_never_end() -> None:
    import socket
    from urllib.parse import urlsplit

    with running(Settings(body_s=0.2)) as own:
        where = urlsplit(own.url)
        with socket.create_connection((where.hostname, where.port)) as link:
            link.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
                b"Content-Type: application/json\r\n\r\n{"
            )
            link.settimeout(10)
            assert b" 408 " in link.recv(1000)


def test_routes_that_are_not_there(small: Running) -> None:
    for path in ("/v2/completions", "/v1", "/v1/embeddings", "/page/secret", "/docs", "/../etc"):
        check_error(httpx.get(small.url + path), 404, None)
    for method, path in [
        ("GET", "/v1/completions"),
        ("DELETE", "/v1/models"),
        ("POST", "/health"),
        ("PUT", "/v1/chat/completions"),
    ]:
        found = httpx.request(method, small.url + path)
        check_error(found, 405, None)
        assert found.headers["allow"]


# --- mutations ------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from(["user", "text", "dense", "tiny", "\ud800", "1", ""]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner),
    ),
    max_leaves=8,
)
NAMES = sorted(
    {name for change, _ in [*BOTH, *COMPLETIONS, *CHATS] for name in change}
    | {"user", "store", "metadata", "echo", "include_usage"}
)


@settings(max_examples=200)
@given(change=st.dictionaries(st.sampled_from(NAMES), JUNK, min_size=1, max_size=4))
@pytest.mark.parametrize(("read", "good"), [(read_completion, COMPLETION), (read_chat, CHAT)])
def test_any_body_is_read_or_refused(read: Any, good: dict[str, Any], change: Any) -> None:
    body = parse(json.dumps({**good, **change}).encode())
    try:
        ask = read(body, TERMS)
    except Fault as fault:
        assert 400 <= fault.status < 500
        assert re.match(r"\S+: .+[.?]$", fault.message), fault.message
        assert fault.param is not None
    else:
        assert ask.prompts or ask.messages


WRONG: list[Any] = [-1, 10**25, "x", [], {}, [[]], [{}], {"a": 1}, True, 0.5, "\ud800", [None]]


def spoiled(draw: random.Random) -> tuple[str, bytes]:
    """A request that is wrong in one to three ways, some of them in its bytes."""
    path, good, change, _ = draw.choice(CASES)
    body = deepcopy({**good, **change})
    for _ in range(draw.randrange(3)):
        body[draw.choice(NAMES)] = draw.choice(WRONG)
    body |= deepcopy(change)
    raw = bytearray(json.dumps(body).encode())
    if draw.random() < 0.3:
        for _ in range(draw.randrange(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
    if draw.random() < 0.1:
        raw = raw[: draw.randrange(len(raw))]
    return path, bytes(raw)


def test_a_thousand_malformed_requests(small: Running) -> None:
    draw = random.Random(5)
    statuses = dict[int, int]()
    headers = {"Content-Type": "application/json"}
    with httpx.Client(base_url=small.url, timeout=20) as http:
        for _ in range(1000):
            path, raw = spoiled(draw)
            found = http.post(path, content=raw, headers=headers)
            statuses[found.status_code] = statuses.get(found.status_code, 0) + 1
            if found.status_code == 200:  # a flipped byte may have mended it
                continue
            assert 400 <= found.status_code < 500, (raw, found.text)
            assert found.json()["error"]["message"].endswith(("?", ".")), found.text
        assert statuses.get(200, 0) < 30, statuses
        found = http.post("/v1/completions", json=COMPLETION)
        assert found.status_code == 200


def test_chats_where_there_are_none() -> None:
    tokenizer = chatting()
    tokenizer.chat_template = None
    with running(tokenizer=tokenizer) as own:
        found = httpx.post(f"{own.url}/v1/chat/completions", json=CHAT)
        check_error(found, 400, "messages")
