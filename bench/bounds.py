"""Whether plans win what their bytes promise: several plans, models and contexts, dense beside.

    python bench/bounds.py --threads 1 --json bounds.json

Both engines read the same prompt once; then they take turns of a few decode steps each, and the
medians of neighbouring turns are compared.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

# Run as a script, Python looks for modules beside it, where the package `bench` is not to be found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.peering import pairs

import skimp
from skimp import kernels
from skimp.cli import output
from skimp.engine import Engine
from skimp.measure.cost import byte_bound
from skimp.measure.machine import identity
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import RichProgress
from skimp.workload import Workload

_MODELS = ("demo", "random:llama-1.1b,layers=8")
_CONTEXTS = (128, 4096)  # or as much as the model can hold
_STEPS = 4  # a turn
_CHUNK = 512  # columns of the prompt at a time


def plans(layers: int) -> dict[str, dict[str, Any]]:
    """Sections of plans for a model with so many layers, by name."""
    order = [*range(1, layers, 2), *range(0, layers, 2)]
    quarter = sorted(order[: layers // 4])
    drops: dict[str, Any] = {
        "25% of attention": {"attention": quarter},
        "33% of attention": {"attention": sorted(order[: layers // 3])},
        "50% of attention": {"attention": sorted(order[: layers // 2])},
        "25% of FF": {"ffn": quarter},
        "25% of layers": {"attention": quarter, "ffn": quarter},
    }
    return {
        **{name: {"drop": section} for name, section in drops.items()},
        "half of the neurons": {"experts": {"keep": 0.5}},
    }


def main(
    threads: Annotated[int, typer.Option(min=1)] = 1,
    turns: Annotated[int, typer.Option(min=6)] = 24,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Time plans next to the dense model; print measured speedup, bound and what it came to."""
    output.check_file(json_file, "--json")
    torch.set_num_threads(threads)
    kernels.set_threads(threads)
    rows = []
    total = len(_MODELS) * len(_CONTEXTS) * len(plans(8)) * turns
    with RichProgress().task("turns", total) as step, torch.inference_mode():
        for source in _MODELS:
            model = skimp.load(source, dtype="bfloat16").model
            empty = Plan.empty(Anatomy.of(model))
            dense = Engine(model)
            for name, sections in plans(dense.anatomy.dense_layers).items():
                planned = Engine(model, replace(empty, sections=sections))
                for wanted in _CONTEXTS:
                    room = (1 + turns) * _STEPS
                    context = min(wanted, (dense.anatomy.context_length or wanted + room) - room)
                    sides = (_Side(dense, context, turns), _Side(planned, context, turns))
                    for turn in range(turns):
                        for side in sides[:: -1 if turn % 2 else 1]:
                            side.turn()
                        step()
                    work = Workload(context, room, 1)
                    bound = byte_bound(dense.anatomy, planned.anatomy, work)
                    found = pairs.row(sides[0].times, sides[1].times, bound)
                    rows.append({"model": source, "plan": name, "context": context, **found})
    document: dict[str, Any] = {
        "machine": identity(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "threads": threads,
        "turns": turns,
        "pairs": rows,
    }
    title = f"Decode speedup and its byte bound, bfloat16, batch 1, {threads} thread(s)"
    output.console().print(pairs.table(title, rows, ">context"))
    if json_file is not None:
        output.write_text(json_file, output.dump(document), "--json")


class _Side:
    """One engine with a prompt read; the times of its turns, in s a step."""

    def __init__(self, engine: Engine, context: int, turns: int) -> None:
        self.engine = engine
        self.times: list[float] = []
        engine.warm_up(1)
        ids = torch.arange(context)[None] % 1000 + 5
        logits, self._state = engine.prefill(ids, (1 + turns) * _STEPS, chunk=_CHUNK)
        self._token = logits.argmax(-1)
        self.turn()  # warms up
        self.times.clear()

    def turn(self) -> None:
        steps = []
        for _ in range(_STEPS):
            start = time.perf_counter()
            self._token = self.engine.decode(self._state, self._token).argmax(-1)
            steps.append(time.perf_counter() - start)
        self.times.append(median(steps))


if __name__ == "__main__":
    typer.run(main)
