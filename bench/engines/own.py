"""skimp's engine, dense or with a plan."""

from typing import Any

import torch
from bench.engines.base import Options
from bench.engines.eager import open_model
from bench.engines.eager import versions as libraries

import skimp
from skimp import kernels
from skimp.engine import Engine
from skimp.plan import Plan


def versions() -> dict[str, str]:
    native = kernels.isa() if kernels.available() else f"none: {kernels.why_not()}"
    return {"skimp": skimp.__version__, "kernels": str(native), **libraries()}


def load(options: Options) -> "Own":
    """`options.argument`: a plan file, or nothing for the dense model."""
    kernels.set_threads(options.threads)
    plan = Plan.read(options.argument) if options.argument else None
    return Own(Engine(open_model(options), plan), options.length)


class Own:
    """One request: the state that the engine returned for it, with room for `length` tokens."""

    def __init__(self, engine: Any, length: int) -> None:
        self._engine, self._length = engine, length
        self._state: Any = None
        slow = engine.warm_up()  # untimed, as other engines' compiling is
        self.about = {"decode": f"on torch: {slow}" if slow else "native"}

    def prefill(self, ids: list[int]) -> int:
        self._state = None  # lets go of the last request's cache first
        logits, self._state = self._engine.prefill([ids], self._length - len(ids))
        return int(logits[0].argmax())

    def decode(self, token: int) -> int:
        return int(self._engine.decode(self._state, torch.tensor([token]))[0].argmax())
