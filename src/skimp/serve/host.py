"""One server process: it listens, loads, answers, and closes without cutting answers off."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

import uvicorn

from skimp.errors import SkimpError
from skimp.serve.app import make_app
from skimp.serve.service import Service, Stage
from skimp.serve.terms import Settings

_FLUSH_S = 5  # what clients are given to take the end of their answers
Made = TypeVar("Made")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; `port` 0 takes a free one.

    Raises:
        SkimpError: the address is none of this machine's, or taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (socket.gaierror, UnicodeError):
        raise SkimpError(f"--host: {host!r} is no address; give 127.0.0.1 or 0.0.0.0.") from None
    # asyncio sends small packets at once only where the protocol is named: else every token of a
    # stream would wait for the client's acknowledgement of the one before, some 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(512)
        return listening
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise SkimpError(
            f"--port: {host} port {port} cannot be listened on ({reason}); give another port, or 0 "
            "for any that is free."
        ) from None


def address(listening: socket.socket) -> str:
    """The URL of a socket that listens; one on all addresses is named by the loopback's."""
    name = listening.getsockname()
    host, port = str(name[0]), int(name[1])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Host:
    """Serves what `make` loads; `run` comes back when the server has closed.

    It listens before the model is there, and tells clients that it is loading. The first signal
    (SIGINT, SIGTERM) or `close` lets running answers end within `settings.grace_s` while new ones
    are refused; the second ends it at once.
    """

    def __init__(
        self,
        make: Callable[[], Service],
        settings: Settings,
        listening: socket.socket,
        ready: Callable[[Service], None] = lambda service: None,
    ) -> None:
        self.stage = Stage()
        self._make, self._settings = make, settings
        self._listening, self._ready = listening, ready
        config = uvicorn.Config(
            make_app(self.stage, settings),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_FLUSH_S,
        )
        self._server = _Server(config, self._signalled)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Serve until told to close.

        Raises:
            SkimpError: the model cannot be loaded; whatever else `make` raised.
        """
        try:
            asyncio.run(self._serve())
        finally:
            self._listening.close()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Begin to close; from any thread, any number of times."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._start(self._load())
        await self._server.serve(sockets=[self._listening])

    async def _load(self) -> None:
        try:
            service = await _in_thread(self._make)
            self.stage.open(service)
            if self.stage.phase == "ready":
                self._ready(service)
        except asyncio.CancelledError:  # told to end before there was a model
            raise
        except BaseException as error:
            self._error = error
            self._server.should_exit = True

    def _signalled(self) -> None:
        if self.stage.phase == "closing":
            self._server.force_exit = self._server.should_exit = True
        else:
            self.close()

    def _close(self) -> None:
        if self.stage.phase != "closing":
            self.stage.phase = "closing"
            self._start(self._drain())

    async def _drain(self) -> None:
        service = self.stage.service
        try:
            if service is not None:
                grace = self._settings.grace_s
                await _in_thread(lambda: service.scheduler.close(grace))
                service.texts.close()
        finally:
            self._server.should_exit = True

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Server(uvicorn.Server):
    """uvicorn's, but a signal is ours to answer: it goes on serving while answers end."""

    def __init__(self, config: uvicorn.Config, signalled: Callable[[], None]) -> None:
        super().__init__(config)
        self._signalled = signalled

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signalled()


async def _in_thread(work: Callable[[], Made]) -> Made:
    """What `work` gives, in a thread that does not keep the process alive."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Made] = loop.create_future()

    def run() -> None:
        try:
            made, error = work(), None
        except BaseException as caught:
            made, error = None, caught
        with suppress(RuntimeError):  # the loop was closed at once, and nobody waits any more
            loop.call_soon_threadsafe(_settle, future, made, error)

    threading.Thread(target=run, name="skimp-serve", daemon=True).start()
    return await future


def _settle(future: asyncio.Future[Any], made: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(made)
    else:
        future.set_exception(error)
