"""A tiny model on engines that are watched: what is asked of them is noted and moves a clock on."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.families import SAMPLES
from torch import Tensor

from skimp.engine import Engine, State
from skimp.measure import speed, timed
from skimp.measure.machine import Machine
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.workload import Workload

MACHINE = Machine("cpu", "a cpu", 2, 1, 1 << 34, "2", "float32", 1e6, 1e9, 1e-6)
DROPPED = (1, 2)


@dataclass(frozen=True)
class Pass:
    """What was asked of one side's engine: a `prefill`, an `extend` or a `decode`.

    `cached`: tokens in the cache before. `picked` [B]: the likeliest tokens after `tokens` [B, Q].
    """

    side: str
    kind: str
    tokens: Tensor
    cached: int
    picked: Tensor
    room: int
    state: "weakref.ref[State]"


@dataclass
class Stage:
    """The watched engines of one model. `takes`: seconds of a pass; `events`: kinds, by side."""

    family: str
    model: Any
    plan: Plan
    passes: list[Pass] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    now: float = 0.0
    takes: Callable[["Stage", Pass], float] = lambda stage, done: 1.0

    @classmethod
    def of(cls, patch: pytest.MonkeyPatch, family: str = "llama") -> "Stage":
        """The stage of a family, on which `compare` runs by the stage's clock."""
        model = build(family)
        stage = cls(family, model, drop(model))
        patch.setattr(speed, "Engine", lambda _, plan=None: Watched(stage, engine(family, plan)))
        patch.setattr(timed, "time", SimpleNamespace(perf_counter=lambda: stage.now))
        return stage

    def compare(self, text: str = "10+8x2", plan: bool = True, **options: Any) -> Any:
        return speed.compare_speed(
            self.model,
            self.plan if plan else None,
            Workload.parse(text),
            machine=MACHINE,
            **options,
        )

    def anatomies(self) -> tuple[Anatomy, Anatomy]:
        dense, planned = engine(self.family, None), engine(self.family, self.plan)
        return dense.anatomy, planned.anatomy

    def timed(self, side: str | None = None) -> list[Pass]:
        """The passes after the warm-up, in which each side serves one request."""
        sides = {done.side for done in self.passes}
        starts = [i for i, done in enumerate(self.passes) if done.kind == "prefill"]
        return [done for done in self.passes[starts[len(sides)] :] if side in (None, done.side)]

    def warming(self) -> list[Pass]:
        return self.passes[: len(self.passes) - len(self.timed())]

    def note(self, watched: "Watched", kind: str, tokens: Tensor, state: State, logits: Any) -> Any:
        done = Pass(
            side=watched.side,
            kind=kind,
            tokens=tokens.clone().reshape(state.batch, -1),
            cached=state.length - tokens.numel() // state.batch,
            picked=logits.argmax(-1),
            room=state.room,
            state=weakref.ref(state),
        )
        self.passes.append(done)
        self.events.append((watched.side, kind))
        self.now += self.takes(self, done)
        return logits


class Watched:
    """Stands for an engine; what it does not watch is the engine's own."""

    def __init__(self, stage: Stage, real: Engine) -> None:
        self.stage = stage
        self.real = real
        planned = getattr(real.model.config, "skimp", None)
        self.side = "planned" if planned else "dense"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def warm_up(self, batch: int) -> str | None:
        self.stage.events.append((self.side, f"warm_up {batch}"))
        self.stage.now += 1e6
        return self.real.warm_up(batch)

    def prefill(self, prompts: Tensor, new: int) -> tuple[Tensor, State]:
        logits, state = self.real.prefill(prompts, new)
        return self.stage.note(self, "prefill", prompts, state, logits), state

    def extend(self, state: State, tokens: Tensor) -> Tensor:
        return self.stage.note(self, "extend", tokens, state, self.real.extend(state, tokens))

    def decode(self, state: State, tokens: Tensor) -> Tensor:
        return self.stage.note(self, "decode", tokens, state, self.real.decode(state, tokens))


@cache
def build(family: str) -> Any:
    return SAMPLES[family].build()


@cache
def _engines(family: str) -> tuple[Engine, Engine]:
    model = build(family)
    return Engine(model), Engine(model, drop(model))


def engine(family: str, plan: Plan | None) -> Engine:
    """The family's engine, dense or with the plan of :func:`drop`, made once."""
    return _engines(family)[plan is not None]


def drop(model: torch.nn.Module) -> Plan:
    """A plan without the attentions DROPPED, and nothing in their place."""
    section = {"attention": list(DROPPED), "fill": "zero"}
    return Plan.empty(Anatomy.of(model)).with_section("drop", section)
