"""Keys, hosts, queues, clients that leave, and the server's own end."""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.cli.conftest import make_tokenizer
from tests.serve.serving import Running, free_port, openai, running
from tests.serve.test_refused import check_error

from skimp.errors import LoadError, SkimpError
from skimp.serve.host import Host, address, listen
from skimp.serve.jobs import Limits
from skimp.serve.terms import OVERRIDES, Settings, read_allow

BODY = {"prompt": "The river", "max_tokens": 200, "temperature": 0}


def until(true: Callable[[], bool], seconds: float = 5.0) -> float:
    """How long it took until something holds."""
    since = time.perf_counter()
    while not true():
        assert time.perf_counter() - since < seconds
        time.sleep(0.005)
    return time.perf_counter() - since


# --- who may ask ----------------------------------------------------------------------------------


def test_a_key_is_asked_for() -> None:
    with running(Settings(key="s3cret-ü")) as own:
        for key in ("wrong", "s3cret", "s3cret-"):
            with pytest.raises(openai.AuthenticationError, match="Authorization"):
                own.client(key).models.list()
        headers = {"Authorization": "Bearer s3cret-ü".encode()}
        assert httpx.get(f"{own.url}/v1/models", headers=headers).status_code == 200
        for path in ("/v1/models", "/metrics"):
            found = httpx.get(own.url + path)
            assert "send `Authorization: Bearer KEY`" in check_error(found, 401, None)
            assert found.headers["www-authenticate"] == "Bearer"
            assert "s3cret" not in found.text
            for wrong in ("Bearer", "Basic s3cret", "s3cret", "Bearer \xff"):
                headers = {"Authorization": wrong.encode("latin-1")}
                check_error(httpx.get(own.url + path, headers=headers), 401, None)
        assert httpx.post(f"{own.url}/v1/completions", json=BODY).status_code == 401
        for path in ("/", "/health", "/live", "/page/page.js"):
            assert httpx.get(own.url + path).status_code == 200


def test_the_right_key_opens() -> None:
    with running(Settings(key="s3cret")) as own:
        assert [model.id for model in own.client("s3cret").models.list()] == ["tiny", "tiny:dense"]
        headers = {"Authorization": "bearer s3cret"}
        assert httpx.get(f"{own.url}/metrics", headers=headers).status_code == 200


def test_names_that_lead_here() -> None:
    """A page on another site whose name is made to lead here is not answered."""
    with running(Settings(hosts=frozenset({"localhost", "127.0.0.1", "::1"}))) as own:
        port = urlsplit(own.url).port
        for host, status in [
            (f"localhost:{port}", 200),
            ("LOCALHOST", 200),
            (f"127.0.0.1:{port}", 200),
            (f"[::1]:{port}", 200),
            ("evil.example", 403),
            (f"evil.example:{port}", 403),
            ("", 403),
        ]:
            found = httpx.get(f"{own.url}/v1/models", headers={"Host": host})
            assert found.status_code == status, host


def test_pages_elsewhere_may_not_ask_unless_told(server: Running) -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    found = httpx.options(f"{server.url}/v1/completions", headers=preflight)
    assert found.status_code == 405
    assert "access-control-allow-origin" not in found.headers
    with running(Settings(key="k", origins=("https://a.example",))) as own:
        found = httpx.options(f"{own.url}/v1/completions", headers=preflight)
        assert found.status_code == 200
        assert found.headers["access-control-allow-origin"] == "https://a.example"
        found = httpx.options(
            f"{own.url}/v1/completions", headers={**preflight, "Origin": "https://b.example"}
        )
        assert found.status_code == 400
        for origin, allowed in (("https://a.example", True), ("https://b.example", False)):
            headers = {"Origin": origin, "Authorization": "Bearer k"}
            found = httpx.get(f"{own.url}/v1/models", headers=headers)
            assert ("access-control-allow-origin" in found.headers) == allowed


# --- what is on offer -----------------------------------------------------------------------------


def test_models(server: Running, client: Any) -> None:
    first, second = client.models.list()
    assert (first.id, first.object, first.owned_by) == ("tiny", "model", "skimp")
    assert (first.skimp["side"], second.skimp["side"]) == ("planned", "dense")
    assert first.skimp["chat"] is True
    assert client.models.retrieve("tiny:dense").id == "tiny:dense"


def test_overrides_that_are_allowed() -> None:
    with running(Settings(allow=frozenset({"ignore_ends"}), timeout_s=9)) as own:
        client = own.client()
        options = {"model": "tiny", "prompt": "a", "max_tokens": 2}
        client.completions.create(**options, extra_body={"skimp": {"ignore_ends": True}})
        assert own.scheduler.seen[-1].ignore_ends
        assert own.scheduler.seen[-1].timeout_s == 9
        for name, value in {"side": "dense", "tokens": True, "timeout_s": 3}.items():
            with pytest.raises(openai.BadRequestError, match=f"--allow {name}") as no:
                client.completions.create(**options, extra_body={"skimp": {name: value}})
            assert no.value.param == f"skimp.{name}"
            assert no.value.code == "not_allowed"


def test_a_timeout_may_only_be_shorter() -> None:
    with running(Settings(timeout_s=9)) as own:
        for seconds, status in ((3, 200), (9, 200), (10, 400)):
            body = {**BODY, "max_tokens": 2, "skimp": {"timeout_s": seconds}}
            found = httpx.post(f"{own.url}/v1/completions", json=body)
            assert found.status_code == status
            assert own.scheduler.seen[-1].timeout_s == min(seconds, 9)


def test_a_side_that_is_not_served() -> None:
    with running(compare=False) as own:
        assert [model.id for model in own.client().models.list()] == ["tiny"]
        found = httpx.post(f"{own.url}/v1/completions", json={**BODY, "skimp": {"side": "dense"}})
        assert "--compare" in check_error(found, 400, "skimp.side")


def test_what_may_be_allowed() -> None:
    assert read_allow(None) == frozenset(OVERRIDES) - {"ignore_ends"}
    assert read_allow("all") == frozenset(OVERRIDES)
    assert read_allow("none") == frozenset()
    assert read_allow("side, tokens") == {"side", "tokens"}
    with pytest.raises(SkimpError, match="--allow: 'sides'"):
        read_allow("sides")


# --- answers that fail ----------------------------------------------------------------------------

IDS = tuple(make_tokenizer()(BODY["prompt"])["input_ids"])


@pytest.mark.parametrize(
    ("script", "status", "code"), [("error", 500, "failed"), ("timeout", 504, "timeout")]
)
def test_an_answer_that_fails(script: str, status: int, code: str) -> None:
    with running(ends={IDS: script}) as own:
        for n in (1, 3):
            found = httpx.post(f"{own.url}/v1/completions", json={**BODY, "n": n})
            check_error(found, status, None)
            assert found.json()["error"]["code"] == code
            until(lambda: own.scheduler.stats().running == 0)
        stream = own.client().completions.create(model="tiny", stream=True, **BODY)
        texts = []
        with pytest.raises(openai.APIError) as failed:
            texts.extend(chunk.choices[0].text for chunk in stream)
        assert failed.value.code == code
        assert len(texts) >= 1


def test_a_full_queue() -> None:
    with running(limits=Limits(batch=1, waiting=1), go=threading.Event()) as own:
        client = own.client()
        streams = [client.completions.create(model="tiny", stream=True, **BODY) for _ in range(2)]
        until(lambda: own.scheduler.stats().waiting == 1)
        with pytest.raises(openai.RateLimitError, match="queue is full") as full:
            client.completions.create(model="tiny", **BODY)
        assert full.value.response.headers["retry-after"] == "1"
        assert full.value.code == "queue_full"
        health = httpx.get(f"{own.url}/health").json()
        assert health == {"status": "ready", "waiting": 1, "running": 1}
        for stream in streams:
            stream.close()


def test_all_answers_of_a_request_or_none() -> None:
    with running(limits=Limits(batch=1, waiting=1), pace_s=0.02) as own:
        found = httpx.post(f"{own.url}/v1/completions", json={**BODY, "n": 3})
        check_error(found, 429, None)
        until(lambda: own.scheduler.stats().running == 0)
        assert own.scheduler.cancelled == 2


# --- clients that leave ---------------------------------------------------------------------------


def test_a_stream_that_is_closed_is_cancelled() -> None:
    with running(pace_s=0.02) as own:
        stream = own.client().completions.create(model="tiny", stream=True, **BODY)
        next(iter(stream))
        stream.close()
        assert until(lambda: own.scheduler.cancelled == 1) < 1
        assert own.scheduler.stats().running == 0


@pytest.mark.parametrize("extra", [{}, {"n": 3}, {"stream": True}])
def test_a_client_that_hangs_up_is_cancelled(extra: dict[str, Any]) -> None:
    with running(pace_s=0.02) as own:
        raw = json.dumps({**BODY, **extra}).encode()
        where = urlsplit(own.url)
        with socket.create_connection((where.hostname, where.port)) as link:
            link.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                + b"Content-Length: %d\r\n\r\n" % len(raw)
                + raw
            )
            until(lambda: len(own.scheduler.seen) == extra.get("n", 1))
        assert until(lambda: own.scheduler.stats().running == 0) < 1
        assert own.scheduler.cancelled == extra.get("n", 1)
        until(lambda: b'status="499"' in httpx.get(f"{own.url}/metrics").content)


def test_streams_are_kept_alive() -> None:
    with running(Settings(keep_alive_s=0.05), pace_s=0.4) as own:
        body = {**BODY, "max_tokens": 2, "stream": True}
        found = httpx.post(f"{own.url}/v1/completions", json=body)
        assert found.headers["content-type"].startswith("text/event-stream")
        assert found.text.count(": waiting") >= 5
        assert found.text.endswith("data: [DONE]\n\n")


# --- its own life ---------------------------------------------------------------------------------


def test_while_loading() -> None:
    go = threading.Event()

    def slowly() -> Any:
        go.wait(20)
        raise LoadError("no such model; give another.")

    listening = listen("127.0.0.1", 0)
    host, url = Host(slowly, Settings(), listening), address(listening)
    errors = list[BaseException]()

    def run() -> None:
        try:
            host.run()
        except SkimpError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    found = httpx.get(f"{url}/health", timeout=20)
    assert (found.status_code, found.json()) == (503, {"status": "loading"})
    assert httpx.get(f"{url}/live").status_code == 200
    assert httpx.get(f"{url}/").status_code == 200
    assert httpx.get(f"{url}/metrics").status_code == 200
    for found in (httpx.get(f"{url}/v1/models"), httpx.post(f"{url}/v1/completions", json=BODY)):
        assert "loading" in check_error(found, 503, None)
        assert found.headers["retry-after"]
    go.set()
    thread.join(20)
    assert [str(error) for error in errors] == ["no such model; give another."]


def test_closing_while_loading() -> None:
    go = threading.Event()

    def slowly() -> Any:
        go.wait(20)
        raise LoadError("no such model; give another.")

    listening = listen("127.0.0.1", 0)
    host, url = Host(slowly, Settings(), listening), address(listening)
    thread = threading.Thread(target=host.run)
    thread.start()
    until(lambda: httpx.get(f"{url}/live").status_code == 200)
    host.close()
    thread.join(10)
    assert not thread.is_alive()
    go.set()


def test_running_answers_end_before_the_server_does() -> None:
    go = threading.Event()
    with running(go=go) as own:
        stream = own.client().completions.create(
            model="tiny", stream=True, **{**BODY, "max_tokens": 40}
        )
        next(iter(stream))
        own.host.close()
        until(lambda: httpx.get(f"{own.url}/health").status_code == 503)
        assert httpx.get(f"{own.url}/health").json()["status"] == "closing"
        found = httpx.post(f"{own.url}/v1/completions", json=BODY)
        assert "closing" in check_error(found, 503, None)
        go.set()
        parts = list(stream)
        assert parts[-1].choices[0].finish_reason == "length"
        own.thread.join(20)
        assert not own.thread.is_alive()


def test_answers_that_take_longer_than_the_grace_are_cut_off() -> None:
    with running(Settings(grace_s=0.2), pace_s=0.05) as own:
        stream = own.client().completions.create(model="tiny", stream=True, **BODY)
        next(iter(stream))
        own.host.close()
        with pytest.raises(openai.APIError, match="closing"):
            list(stream)
        own.thread.join(5)
        assert not own.thread.is_alive()


def test_addresses() -> None:
    port = free_port()
    with listen("127.0.0.1", port) as first:
        # Without the protocol's name asyncio would hold small packets back.
        assert first.proto == socket.IPPROTO_TCP
        assert address(first) == f"http://127.0.0.1:{port}"
        with pytest.raises(SkimpError, match=f"--port: 127.0.0.1 port {port}"):
            listen("127.0.0.1", port)
    with listen("0.0.0.0", 0) as everywhere:
        assert address(everywhere).startswith("http://127.0.0.1:")
    for host in ("no such host", "256.1.1.1.1", "a" * 300):
        with pytest.raises(SkimpError, match="--host"):
            listen(host, 0)


def test_metrics(server: Running) -> None:
    def value(name: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith(name + " ")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    names = {
        'skimp_requests_total{route="/v1/completions",status="200"}': 1,
        'skimp_requests_total{route="other",status="404"}': 1,
        'skimp_prompt_tokens_total{side="dense"}': len(IDS),
        'skimp_generated_tokens_total{side="dense"}': 20,
        'skimp_time_to_first_token_seconds_count{side="dense"}': 2,
        'skimp_time_per_token_seconds_count{side="dense"}': 18,
        'skimp_exit_depth_layers_count{side="dense"}': 20,
        'skimp_exit_depth_layers_sum{side="dense"}': 60,
    }
    before = {name: value(name) for name in names}
    body = {**BODY, "max_tokens": 10, "n": 2, "model": "tiny:dense"}
    httpx.post(f"{server.url}/v1/completions", json=body)
    httpx.get(f"{server.url}/no/such/{time.time()}")
    changes = {name: value(name) - before[name] for name in names}
    depths = changes.pop('skimp_exit_depth_layers_sum{side="dense"}')
    assert 40 <= depths <= 80
    assert changes == {name: names[name] for name in changes}
    text = httpx.get(f"{server.url}/metrics").text
    for name in ("skimp_waiting", "skimp_running", "process_resident_memory_bytes"):
        assert f"\n{name} " in text
    assert "/no/such" not in text


def test_a_mistake_of_ours_is_told_and_the_server_goes_on() -> None:
    with running() as own:
        service = own.host.stage.require()

        def broken(*words: object) -> None:
            raise ZeroDivisionError("ours")

        kept, own.scheduler.submit = own.scheduler.submit, broken  # type: ignore[method-assign]
        found = httpx.post(f"{own.url}/v1/completions", json=BODY)
        assert "ZeroDivisionError" in check_error(found, 500, None)
        own.scheduler.submit = kept  # type: ignore[method-assign]
        assert httpx.post(f"{own.url}/v1/completions", json=BODY).status_code == 200
        assert service.scheduler is own.scheduler
