"""A server that tests share, and OpenAI's own client for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from tests import families

if TYPE_CHECKING:
    from tests.serve.scheduling import Gate
    from tests.serve.serving import Running

    from skimp.engine import Engine


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """One that most tests share; it has a dense side and exits."""
    from tests.serve.serving import running

    with running(exits=True) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Any:
    return server.client()


@pytest.fixture(scope="module")
def engine() -> Engine:
    from skimp.engine import Engine

    return Engine(families.build("llama"))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    from tests.serve.scheduling import Gate

    found = Gate(monkeypatch)
    yield found
    found.open.set()
