"""The routes of the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from importlib import resources
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from skimp.serve.answering import Answering, Chunks, whole
from skimp.serve.faults import Fault, encode
from skimp.serve.fields import parse
from skimp.serve.http import (
    KEEP_ALIVE,
    EventStream,
    Guard,
    attended,
    document,
    event,
    read_body,
    refusal,
)
from skimp.serve.metrics import Metrics
from skimp.serve.protocol import Ask, read_chat, read_completion
from skimp.serve.service import Stage
from skimp.serve.shapes import ChatShape, CompletionShape, Shape
from skimp.serve.terms import Settings, Terms

Read = Callable[[Mapping[str, Any], Terms], Ask]

_PAGE = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(stage: Stage, settings: Settings) -> FastAPI:
    """The application; it answers as soon as `stage` is ready, and says so until then."""
    app = FastAPI(title="skimp", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics(lambda: stage.service.scheduler.stats() if stage.service else None)
    _add_answers(app, stage, settings, metrics)
    _add_facts(app, stage, metrics)
    _add_page(app)
    _add_faults(app)
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app


def _add_answers(app: FastAPI, stage: Stage, settings: Settings, metrics: Metrics) -> None:
    async def answer(request: Request, read: Read, shape: type[CompletionShape | ChatShape]):
        service = stage.require()
        ask = read(parse(await read_body(request, settings)), service.terms)
        stage.require()  # the body may have taken its time
        answering = await service.answering(ask, metrics)
        written = shape(ask.model, service.texts, logprobs=ask.logprobs is not None)
        if ask.stream:
            events = _events(answering, written, settings.keep_alive_s)
            return EventStream(events, answering.cancel)
        try:
            await attended(request.receive, _wait(answering, settings.keep_alive_s))
        finally:
            answering.cancel()
        return document(whole(answering, written))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, read_completion, CompletionShape)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, read_chat, ChatShape)


async def _wait(answering: Answering, keep_alive_s: float) -> None:
    async for _ in answering.events(keep_alive_s):
        pass


async def _events(answering: Answering, shape: Shape, keep_alive_s: float) -> AsyncGenerator[bytes]:
    chunks = Chunks(answering, shape)
    try:
        for chunk in chunks.opening():
            yield event(encode(chunk))
        async with aclosing(answering.events(keep_alive_s)) as events:
            async for found in events:
                if found is None:
                    yield KEEP_ALIVE
                    continue
                for chunk in chunks.of(*found):
                    yield event(encode(chunk))
        for chunk in chunks.closing():
            yield event(encode(chunk))
        yield event(b"[DONE]")
    except Fault as fault:
        yield event(encode(fault.body()))


def _add_facts(app: FastAPI, stage: Stage, metrics: Metrics) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return document({"object": "list", "data": stage.require().models()})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        for entry in stage.require().models():
            if entry["id"] == name:
                return document(entry)
        message = f"model: {name[:64]!r} is not served here; see /v1/models."
        raise Fault(404, message, "model", "model_not_found")

    @app.get("/health")
    async def health() -> Response:
        found: dict[str, Any] = {"status": stage.phase}
        if stage.service is not None:
            stats = stage.service.scheduler.stats()
            found |= {"waiting": stats.waiting, "running": stats.running}
        return document(found, 200 if stage.phase == "ready" else 503)

    @app.get("/live")
    async def live() -> Response:
        return document({"status": stage.phase})

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=metrics.content_type)


def _add_page(app: FastAPI) -> None:
    folder = resources.files("skimp.serve") / "page"
    files = {name: (folder / name).read_bytes() for name in _PAGE}

    def served(name: str) -> Response:
        headers = {
            "Content-Security-Policy": _POLICY,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return Response(files[name], 200, headers, _PAGE[name])

    @app.get("/")
    async def page() -> Response:
        return served("index.html")

    @app.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return served(name)


def _add_faults(app: FastAPI) -> None:
    @app.exception_handler(Fault)
    async def fault(request: Request, error: Fault) -> Response:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def unserved(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            message = f"{request.method}: this route does not take it; see docs/serving.md."
            return refusal(Fault(405, message, None, "method_not_allowed", error.headers))
        message = "path: there is nothing here; the API is under /v1, a page to try it at /."
        return refusal(Fault(error.status_code, message, None, "not_found", error.headers))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        # Starlette raises it again behind this, so the server's log has the traceback.
        message = f"server: unexpected {type(error).__name__}; its log says more."
        return refusal(Fault(500, message, None, "internal_error"))
