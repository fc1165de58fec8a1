"""A server on a free port with a fake scheduler behind it, and OpenAI's own client."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.cli.conftest import make_tokenizer
from tests.serve.fake import FakeScheduler

pytest.importorskip("fastapi", reason="the serve extra is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from skimp.serve.host import Host, address, listen  # noqa: E402
from skimp.serve.service import Service  # noqa: E402
from skimp.serve.terms import Settings, Terms  # noqa: E402
from skimp.serve.texts import Texts  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.first %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
)
CONTEXT = 256
USUAL_SETTINGS = Settings()


def chatting() -> Any:
    """A tokenizer with a chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@dataclass
class Running:
    """A server under test."""

    url: str
    host: Host
    scheduler: FakeScheduler
    thread: threading.Thread = field(repr=False)

    def client(self, key: str = "none", **options: Any) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)


def fake_service(
    scheduler: FakeScheduler, tokenizer: Any, settings: Settings, *, compare: bool = True
) -> Service:
    models = {"tiny": "planned"} | ({"tiny:dense": "dense"} if compare else {})
    texts = Texts(tokenizer)
    terms = Terms(
        models=models,
        context=CONTEXT,
        vocabulary=len(tokenizer),
        chat=texts.chat,
        choices=8,
        new=settings.new,
        timeout_s=settings.timeout_s,
        allow=settings.allow,
    )
    return Service(scheduler, texts, terms, {"planned": 4, "dense": 6})


@contextmanager
def running(
    settings: Settings = USUAL_SETTINGS,
    *,
    tokenizer: Any = None,
    compare: bool = True,
    **options: Any,
) -> Iterator[Running]:
    tokenizer = tokenizer or chatting()
    scheduler = FakeScheduler(tokenizer, len(tokenizer), **options)
    ready = threading.Event()

    def made() -> Service:
        scheduler.start()
        return fake_service(scheduler, tokenizer, settings, compare=compare)

    listening = listen("127.0.0.1", 0)
    host = Host(made, settings, listening, lambda service: ready.set())
    thread = threading.Thread(target=host.run, daemon=True)
    url = address(listening)
    thread.start()
    assert ready.wait(20)
    yield Running(url, host, scheduler, thread)
    host.close()
    thread.join(20)
    assert not thread.is_alive()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
