"""Reading experts' weights in place or from copies: what each costs here, by the clock."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from skimp.engine.gathered import Copies
from skimp.engine.guides import Gathered, InPlace
from skimp.methods.experts.deciding import Chooser
from skimp.methods.experts.modules import Guide

Asked = Literal["auto", "in place", "gathered"]
Name = Literal["in place", "gathered"]
ASKED: tuple[Asked, ...] = get_args(Asked)

_ANSWER = 32
"""Tokens that an answer is expected to have where its room says nothing better."""
_ROUNDS = 5
_TRIED = 4  # layers in turn, so that what one of them left in a cache flatters neither way


@dataclass(frozen=True)
class Way:
    """How an engine reads the weights of experts for a batch, and why.

    `name`: in place, or gathered into buffers that take `bytes` of memory (0 in place). Where both
    were tried, seconds a token of all thinned FFs read `in_place_s` and `gathered_s`, seconds a
    choice that copying takes, `copy_s`, and the `tokens` that a choice was expected to serve; else
    None.
    """

    name: Name
    bytes: int = 0
    in_place_s: float | None = None
    gathered_s: float | None = None
    copy_s: float | None = None
    tokens: int | None = None


def expected(room: int, refresh: int) -> int:
    """Tokens that a choice will serve in a request with `room` for so many more."""
    tokens = max(_ANSWER, room)
    return min(tokens, refresh) if refresh else tokens


@dataclass(frozen=True)
class Costs:
    """Seconds of all thinned FFs: a token `in_place` and `gathered`, a choice for the `copy`."""

    in_place: float
    gathered: float
    copy: float

    def way(self, tokens: int, wanted: int) -> Way:
        """What is quicker where a choice serves `tokens`, and copies take `wanted` bytes."""
        gathers = self.copy + tokens * self.gathered < tokens * self.in_place
        name = "gathered" if gathers else "in place"
        figures = (self.in_place, self.gathered, self.copy, tokens)
        return Way(name, wanted if gathers else 0, *figures)


def measure(chooser: Chooser, choice: InPlace, batch: int, *, recorded: bool) -> Costs:
    """What both ways cost for `batch` inputs, tried on a few layers and reckoned for all.

    `recorded`: steps run from a recorded graph (GPUs), so both are timed without what it costs to
    launch their kernels one by one.
    """
    layers = [la for la, width in chooser.widths.items() if chooser.count(la) < width]
    tried = layers[:: -(-len(layers) // _TRIED)] if layers else []
    if not tried:
        return Costs(0.0, 0.0, 0.0)
    copies = Copies(chooser, tried)
    together = Gathered(copies.layers, dict.fromkeys(tried))
    works = {
        "copy": lambda: copies.take(object(), choice),
        "in place": _ffns(chooser, choice, tried, batch),
        "gathered": _ffns(chooser, together, tried, batch),
    }
    weight = chooser.outputs[tried[0]].weight
    if recorded:
        works |= {name: _replayed(works[name]) for name in ("in place", "gathered")}
    found = _least(works, weight.device)
    share = len(layers) / len(tried)
    return Costs(*(share * found[name] for name in ("in place", "gathered", "copy")))


def _ffns(chooser: Chooser, guide: Guide, layers: list[int], batch: int) -> Callable[[], object]:
    """What a step does with the maps of some layers' FFs."""
    weight = chooser.outputs[layers[0]].weight
    x = torch.randn(batch, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    hs = {la: x.new_ones(batch, 1, chooser.count(la)) for la in layers}

    def work() -> None:
        for layer in layers:
            for module in chooser.inputs[layer]:
                guide.enter(module, x)
            guide.leave(chooser.outputs[layer], hs[layer])

    return work


def _least(works: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Seconds each takes, the least of a few rounds in turn after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(_ROUNDS + 1):
        for name, work in works.items():
            start = _now(device)
            work()
            taken = _now(device) - start
            if round_:
                found[name].append(taken)
    return {name: min(times) for name, times in found.items()}


def clock() -> float:
    """Seconds."""
    return time.perf_counter()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def _replayed(work: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are made at their first run, which cannot be recorded
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay
