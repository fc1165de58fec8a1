"""What a server serves: the scheduler, the texts, and what is said about them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from skimp.serve.answering import Answering, Scheduling, jobs
from skimp.serve.faults import Fault
from skimp.serve.metrics import Metrics
from skimp.serve.protocol import Ask
from skimp.serve.shapes import Choice
from skimp.serve.terms import Terms
from skimp.serve.texts import Texts

Phase = Literal["loading", "ready", "closing"]


@dataclass(frozen=True)
class Service:
    """A model that answers.

    `layers`: of each side. `about`: what the page and `/v1/models` say of the model.
    """

    scheduler: Scheduling
    texts: Texts
    terms: Terms
    layers: Mapping[str, int]
    about: Mapping[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    async def answering(self, ask: Ask, metrics: Metrics) -> Answering:
        """A request's answers, under way; Fault if it is not taken."""
        prompts = await self.texts.prompts(ask)
        wanted = jobs(ask, prompts, self.terms)
        choices = [
            Choice(index, ask.side, self._echo(ask, index, job.prompt) if ask.echo else "")
            for index, job in enumerate(wanted)
        ]
        found = Answering(ask, wanted, choices, metrics, self.layers[ask.side])
        found.submit(self.scheduler)
        return found

    def _echo(self, ask: Ask, index: int, ids: tuple[int, ...]) -> str:
        prompt = ask.prompts[index // ask.n]
        return prompt if isinstance(prompt, str) else self.texts.text(ids)

    def models(self) -> list[dict[str, Any]]:
        """The entries of `/v1/models`."""
        return [
            {
                "id": name,
                "object": "model",
                "created": self.created,
                "owned_by": "skimp",
                "skimp": {
                    "side": side,
                    "layers": self.layers[side],
                    "context": self.terms.context,
                    "chat": self.terms.chat,
                    "allow": sorted(self.terms.allow),
                    **self.about.get(side, {}),
                },
            }
            for name, side in self.terms.models.items()
        ]


class Stage:
    """Where a server is in its life, and what it serves once it is ready."""

    def __init__(self) -> None:
        self.phase: Phase = "loading"
        self._service: Service | None = None

    def open(self, service: Service) -> None:
        """Begin to answer."""
        self._service = service
        if self.phase == "loading":
            self.phase = "ready"

    @property
    def service(self) -> Service | None:
        """What is served, also while closing; None while loading."""
        return self._service

    def require(self) -> Service:
        """What is served; Fault (503) while loading or closing."""
        if self.phase == "ready" and self._service is not None:
            return self._service
        what = "loading its model" if self.phase == "loading" else "closing"
        remedy = "try again soon" if self.phase == "loading" else "ask another one"
        message = f"server: it is {what}; {remedy}."
        raise Fault(503, message, None, self.phase, {"Retry-After": "2"})
