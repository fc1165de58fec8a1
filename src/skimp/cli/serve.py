"""`skimp serve`: an OpenAI-compatible server over one model, and a page to try it."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import access, options
from skimp.cli.common import (
    Run,
    check_keep,
    dropped_of,
    layer_words,
    neuron_words,
    read_plan,
    require_dense,
    require_tokenizer,
    with_exit,
    with_experts,
)
from skimp.errors import SkimpError

if TYPE_CHECKING:
    from skimp.models.load import Loaded
    from skimp.plan import Plan
    from skimp.serve.jobs import Limits
    from skimp.serve.service import Service
    from skimp.serve.terms import Settings

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_LIMITS = "What it takes on"
_ACCESS = "Who may ask"


def serve(
    ctx: typer.Context,
    model: options.Model,
    plan: options.PlanFile = None,
    experts: options.Keep = None,
    exit: options.ExitFile = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Serve the dense model too, as NAME:dense, over the same weights."
        ),
    ] = False,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name",
            metavar="NAME",
            help="What clients call the model; by default its last name.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Where to listen; 0.0.0.0 is everywhere.",
            rich_help_panel=_ACCESS,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            "--port",
            metavar="N",
            min=0,
            max=65535,
            help="0 takes a free one.",
            rich_help_panel=_ACCESS,
        ),
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="SKIMP_API_KEY",
            help="What clients must send as `Authorization: Bearer KEY`.",
            show_default=False,
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            "--cors",
            metavar="ORIGIN",
            help="Let web pages of this origin ask, such as https://a.example; may be repeated.",
            show_default=False,
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    allow: Annotated[
        str | None,
        typer.Option(
            "--allow",
            metavar="NAME,…",
            help="What requests may ask for under `skimp`: some of side, timeout_s, tokens, "
            "ignore_ends; or all, or none [dim](default: all but ignore_ends)[/].",
            show_default=False,
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    max_batch: Annotated[
        int,
        typer.Option(
            "--max-batch",
            metavar="N",
            min=1,
            help="Answers that are written together.",
            rich_help_panel=_LIMITS,
        ),
    ] = 16,
    max_waiting: Annotated[
        int,
        typer.Option(
            "--max-waiting",
            metavar="N",
            min=1,
            help="Answers that may wait; further ones are refused with 429.",
            rich_help_panel=_LIMITS,
        ),
    ] = 64,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            min=1,
            help="Tokens of one answer at most; by default what the model's context holds.",
            show_default=False,
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_body: Annotated[
        int,
        typer.Option(
            "--max-body",
            metavar="BYTES",
            min=256,
            help="Size of a request at most.",
            rich_help_panel=_LIMITS,
        ),
    ] = 1 << 20,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0.0,
            help="For one answer, waiting included; 0 is for ever.",
            rich_help_panel=_LIMITS,
        ),
    ] = 600.0,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0.0,
            help="For running answers when the server is told to end.",
            rich_help_panel=_LIMITS,
        ),
    ] = 30.0,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Answer many clients at once, with OpenAI's API; a page to try it is at /.

    [bold]Examples[/]

    skimp serve demo --plan plan.yaml
    skimp serve demo --plan plan.yaml --compare --port 9000
    skimp serve planned-folder --model-name mine --max-batch 32
    SKIMP_API_KEY=secret skimp serve demo --host 0.0.0.0 --max-tokens 512
    """
    del debug
    _require_extra()
    from skimp.serve.jobs import Limits
    from skimp.serve.terms import Settings, read_allow

    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    settings = Settings(
        key=access.key(api_key),
        origins=tuple(access.origin(one) for one in cors or ()),
        hosts=access.hosts(host, api_key or None),
        body_bytes=max_body,
        new=max_tokens,
        timeout_s=timeout or None,
        grace_s=grace,
        allow=read_allow(allow),
    )
    check_keep(experts)
    asked = _Asked(
        model,
        read_plan(plan) if plan is not None else None,
        experts,
        exit,
        compare,
        _name(model, model_name),
    )
    _check_compare(asked)
    _Serving(run, asked, settings, Limits(batch=max_batch, waiting=max_waiting)).start(host, port)


@dataclass(frozen=True)
class _Asked:
    """What is to be served."""

    source: str
    plan: Plan | None
    experts: float | None
    exit: Path | None
    compare: bool
    name: str

    @property
    def changes(self) -> bool:
        """Whether a plan is to be put on the model."""
        return any(one is not None for one in (self.plan, self.experts, self.exit))


@dataclass(frozen=True)
class _Serving:
    """One run of the server."""

    run: Run
    asked: _Asked
    settings: Settings
    limits: Limits

    def start(self, host: str, port: int) -> None:
        """Listen, load, and serve until a signal ends it."""
        from skimp.serve.host import Host, address, listen

        listening = listen(host, port)
        url = address(listening)
        self._warn(host)
        header: dict[str, Any] = {}

        def ready(service: Service) -> None:
            self._say(url, service)
            if self.run.json_file is not None:
                terms = service.terms
                models = {"models": dict(terms.models), "context": terms.context}
                self.run.finish({**header, "url": url, **models})

        Host(lambda: self._load(header), self.settings, listening, ready).run()
        self.run.progress.note("Closed.")

    def _load(self, header: dict[str, Any]) -> Service:
        """Load what was asked for; `header` is filled with what documents open with."""
        from skimp import kernels
        from skimp.models.anatomy import Anatomy
        from skimp.serve.build import build

        loaded = self.run.load(self.asked.source)
        require_tokenizer(loaded, "`skimp serve`")
        anatomy = Anatomy.of(loaded.model)
        chosen = self._plan(loaded, anatomy)
        with self.run.progress.task("Making kernels ready"):
            kernels.available()
        header |= self.run.loaded_header(loaded, anatomy, chosen or loaded.plan)
        header["command"] = self._without_key(header["command"])
        return build(
            loaded,
            chosen,
            name=self.asked.name,
            compare=self.asked.compare,
            limits=self.limits,
            settings=self.settings,
            about={"planned": {"plan": plan_words(chosen or loaded.plan)}},
            progress=self.run.progress,
        )

    def _plan(self, loaded: Loaded, anatomy: Any) -> Plan | None:
        asked = self.asked
        if asked.changes:
            require_dense(loaded, "serve --plan")
        return with_exit(with_experts(asked.plan, asked.experts, anatomy), asked.exit, anatomy)

    def _without_key(self, command: str) -> str:
        """A command line that may be shown."""
        key = self.settings.key
        return command if key is None else command.replace(shlex.quote(key), "KEY")

    def _warn(self, host: str) -> None:
        if self.settings.key is None and not access.is_loopback(host):
            self.run.progress.note(
                f"Warning: {host} can be reached by others, and there is no key; give --api-key."
            )

    def _say(self, url: str, service: Service) -> None:
        name, side = next(iter(service.terms.models.items()))
        words = {"planned": "with its plan", "dense": "dense"}[side]
        beside = f", and {name}:dense beside it" if self.asked.compare else ""
        route, body = _example(name, chat=service.terms.chat)
        key = " -H 'Authorization: Bearer KEY'" if self.settings.key is not None else ""
        lines = [
            f"{name} is served {words}{beside}: {url}/v1 for OpenAI's clients, {url}/ to try it.",
            f"curl {url}{route}{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
            "Ctrl-C ends it, running answers first.",
        ]
        for line in lines:
            self.run.console.print(line, soft_wrap=True, markup=False)


def _example(name: str, *, chat: bool) -> tuple[str, str]:
    """A route, and a body for it."""
    if chat:
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        body = {"model": name, "messages": messages, "max_tokens": 64}
        return "/v1/chat/completions", json.dumps(body)
    body = {"model": name, "prompt": "The sky is blue because", "max_tokens": 64}
    return "/v1/completions", json.dumps(body)


def plan_words(plan: Plan | None) -> str:
    """What a plan leaves out, in short, for the page."""
    if plan is None:
        return ""
    from skimp.methods.registry import sections

    found, dropped = sections(plan), dropped_of(plan)
    parts: list[str] = []
    names: Mapping[str, str] = {"attention": "no attention in layers", "ffn": "no FF in layers"}
    for kind, words in names.items():
        if dropped[kind]:
            parts.append(f"{words} {layer_words(dropped[kind])}")
    experts = plan.sections.get("experts")
    if experts is not None:
        section = found["experts"].to_dict()
        parts.append(f"neurons: {neuron_words(**section)}")
    if "exit" in plan.sections:
        parts.append("tokens may leave early")
    return "; ".join(parts)


def _require_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SkimpError(
            f"serve: {' and '.join(missing)} must be installed for it; pip install 'skimp[serve]'."
        )


def _name(source: str, given: str | None) -> str:
    if given is not None:
        if not given.strip() or not given.isprintable() or len(given) > 128:
            raise SkimpError("--model-name: give up to 128 characters of text.")
        return given
    return Path(source).expanduser().resolve().name if Path(source).exists() else source


def _check_compare(asked: _Asked) -> None:
    """Refuse what can be refused before the model is loaded."""
    if asked.compare and not asked.changes and not Path(asked.source).exists():
        raise SkimpError(
            "--compare: without a plan both sides would be the dense model; give --plan too."
        )
