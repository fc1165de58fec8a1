"""HTTP's own matters: bodies of bounded size, clients that leave, who may ask."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skimp.serve.faults import Fault, encode
from skimp.serve.metrics import Metrics
from skimp.serve.terms import Settings

Made = TypeVar("Made")

LEFT = 499
"""The status that metrics show for clients that left; they are sent none."""

_DRAINED = 8 << 20  # bytes past the limit that are read, so that clients get to see why
_GUARDED = ("/v1/", "/metrics")
_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/live", "/metrics")


class Left(Exception):
    """The client has gone."""


def document(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(encode(body), status, headers, "application/json")


def refusal(fault: Fault) -> Response:
    """A fault as a response."""
    return document(fault.body(), fault.status, fault.headers)


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body of a request.

    Raises:
        Fault: it is no JSON by its own account, too large, or too slow in coming.
        Left: the client left while sending it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Browsers let any page send other kinds here without asking first.
        raise Fault(415, "Content-Type: send the body as application/json.", None, "content_type")
    try:
        async with asyncio.timeout(settings.body_s):
            return await _bounded(request, settings.body_bytes)
    except TimeoutError:
        message = f"body: it took longer than {settings.body_s:g} s to come; send it faster."
        raise Fault(408, message, None, "timeout") from None
    except ClientDisconnect:
        raise Left from None


async def _bounded(request: Request, limit: int) -> bytes:
    size, parts = 0, list[bytes]()
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit + _DRAINED:
        raise _too_large(limit)
    async for part in request.stream():
        size += len(part)
        if size > limit + _DRAINED:
            raise _too_large(limit)
        if size <= limit:
            parts.append(part)
    if size > limit:
        raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> Fault:
    message = f"body: it is larger than {limit} bytes, this server's limit; send less."
    return Fault(413, message, None, "body_too_large", {"Connection": "close"})


async def attended(receive: Receive, work: Coroutine[Any, Any, Made]) -> Made:
    """What `work` gives, cancelled if the client leaves before.

    Raises:
        Left: it did.
    """
    task, leaving = asyncio.create_task(work), asyncio.create_task(_leaving(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Left
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _leaving(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, given up when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], close: Callable[[], None]) -> None:
        """`close`: called at the end, however that comes about."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await attended(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        async with aclosing(self._events) as events:
            async for data in events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


KEEP_ALIVE = b": waiting\n\n"
"""A comment that keeps proxies from giving up on a stream."""


class Guard:
    """What stands before every route: names, keys, headers, counting."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        since, status = time.perf_counter(), LEFT

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._serve(scope, receive, noted)
        except Left:
            status = LEFT
        except Exception:
            status = 500
            raise
        finally:
            self._metrics.request(_route(scope["path"]), status, time.perf_counter() - since)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(scope["path"], Headers(scope=scope))
        app: Callable[[Scope, Receive, Send], Awaitable[None]]
        app = self._app if fault is None else refusal(fault)
        await app(scope, receive, send)

    def _fault(self, path: str, headers: Headers) -> Fault | None:
        hosts, key = self._settings.hosts, self._settings.key
        if hosts is not None and _host(headers.get("host", "")) not in hosts:
            # A page elsewhere may have made its own name lead here.
            return Fault(
                403, "Host: this server is called by its own address only; use that.", None, "host"
            )
        if key is None or not path.startswith(_GUARDED):
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        # Headers are bytes, which Starlette shows as Latin-1.
        right = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
        if kind.lower() == "bearer" and right:
            return None
        problem = "it is not this server's key" if given else "there is none"
        message = f"Authorization: {problem}; send `Authorization: Bearer KEY`."
        return Fault(401, message, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})


def _host(header: str) -> str:
    """The name in a Host header, without port."""
    if header.startswith("["):
        return header.partition("]")[0][1:].lower()
    return header.partition(":")[0].lower()


def _route(path: str) -> str:
    """What metrics call a path: there are only so many names."""
    if path in _ROUTES:
        return path
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return "page" if path == "/" or path.startswith("/page/") else "other"
