"""What early exits win on the clock for the layers they leave out, on a pattern of depths.

    python bench/exits.py --model random:llama-1.1b --threads 1 --json exits.json

Which tokens leave where is scripted, so weights may be random; every probe is paid for: translator,
shortlist and rule. Dense and leaving engines take turns of a whole pattern each; the work that
exits put off is part of the turn, its rest at the end of each too.
"""

import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import skimp
from skimp import kernels
from skimp.cli import output
from skimp.engine import Engine
from skimp.measure.machine import identity
from skimp.measure.statistics import median_interval
from skimp.methods.exit.section import read_section
from skimp.methods.exit.values import shapes
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import RichProgress

_PROMPT = 128
# Where the deepest sequence of a step leaves: at the first probe, at the second, or not at all.
_PATTERN = (0, 0, 2, 1, 0, 2, 0, 1, 0, 2, 0, 0, 1, 0, 2, 0, 1, 2, 0, 2)


def exits(model: nn.Module, candidates: int, screen: int, pending: int, kv: str) -> Plan:
    """A plan with two probes, at a half and at three quarters of the depth, and made-up values."""
    anatomy = Anatomy.of(model)
    count, random = anatomy.dense_layers, torch.Generator().manual_seed(0)
    section = {
        "probe": [count // 2 - 1, count * 3 // 4 - 1],
        "candidates": candidates,
        "screen": screen,
        "threshold": float("inf"),
        "max_pending": pending,
        "kv": kv,
    }
    values: dict[str, Tensor] = {}
    for name, shape in shapes(read_section(section), anatomy).items():
        if name.endswith("tokens"):
            drawn = torch.randint(anatomy.vocabulary, shape, generator=random)
            values[name] = drawn.int().sort(-1).values
        else:
            values[name] = torch.randn(shape, generator=random) / shape[-1] ** 0.5
    return Plan.empty(anatomy).with_section("exit", section).with_values(values)


class Side:
    """An engine that goes through a request in turns."""

    def __init__(self, engine: Engine, batch: int, turns: int) -> None:
        self.engine, self.times, self.ran = engine, list[float](), list[int]()
        random = torch.Generator().manual_seed(batch)
        ids = torch.randint(5, 3000, (batch, _PROMPT), generator=random)
        engine.warm_up(batch)
        logits, self.state = engine.prefill(ids, (turns + 1) * len(_PATTERN) + 1)
        self._token = logits.argmax(-1)
        self.turn()
        self.times.clear()
        self.ran.clear()

    def turn(self) -> None:
        start = time.perf_counter()
        for _ in _PATTERN:
            self.engine.decode(self.state, self._token)
            if self.state.exits is not None:
                self.ran.append(self.state.exits.ran)
        self.engine.settle(self.state)
        self.times.append((time.perf_counter() - start) / len(_PATTERN))


def script(engine: Engine, batch: int) -> None:
    """Let the first sequence leave as the pattern says, and the others no later."""
    exits = engine.exits
    assert exits is not None
    places = [*exits.looks, exits.layers]
    random = torch.Generator().manual_seed(1)
    earlier = torch.randint(3, (len(_PATTERN), batch), generator=random)

    def leaves(column: int, place: int) -> Tensor:
        at = (column - _PROMPT) % len(_PATTERN)
        depth = torch.minimum(earlier[at], torch.tensor(_PATTERN[at]))
        depth[0] = _PATTERN[at]
        return torch.tensor(places)[depth] <= place

    exits.script = leaves


def main(
    model: Annotated[str, typer.Option()] = "random:llama-1.1b",
    batch: Annotated[list[int] | None, typer.Option(min=1, max=16)] = None,
    candidates: Annotated[int, typer.Option(min=0)] = 128,
    screen: Annotated[int, typer.Option(min=0)] = 128,
    pending: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    turns: Annotated[int, typer.Option(min=6)] = 12,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Time scripted exits beside dense; print what share of the layers' saving the clock shows."""
    output.check_file(json_file, "--json")
    torch.set_num_threads(threads)
    kernels.set_threads(threads)
    loaded = skimp.load(model, dtype="bfloat16").model
    sizes = batch or [1, 8]
    rows = []
    with RichProgress().task("turns", len(sizes) * turns) as done, torch.inference_mode():
        for size in sizes:
            engines = {"dense": Engine(loaded)}
            for kv in ("exact", "propagate"):
                engines[kv] = Engine(loaded, exits(loaded, candidates, screen, pending, kv))
                script(engines[kv], size)
            sides = {name: Side(each, size, turns) for name, each in engines.items()}
            for turn in range(turns):
                for side in list(sides.values())[:: -1 if turn % 2 else 1]:
                    side.turn()
                done()
            rows += [_row(name, size, sides) for name in ("exact", "propagate")]
    document: dict[str, Any] = {
        "machine": identity(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": model,
        "candidates": candidates,
        "screen": screen,
        "max_pending": pending,
        "threads": threads,
        "turns": turns,
        "rows": rows,
    }
    output.console().print(_table(document))
    if json_file is not None:
        output.write_text(json_file, output.dump(document), "--json")


def _row(name: str, batch: int, sides: dict[str, Side]) -> dict[str, Any]:
    dense, side = sides["dense"], sides[name]
    ratios = [d / p for d, p in zip(dense.times, side.times, strict=True)]
    found = median_interval(ratios)
    layers = len(side.engine.anatomy.layers)
    saved = 1 - sum(side.ran) / len(side.ran) / layers
    return {
        "kv": name,
        "batch": batch,
        "dense_tpot_s": median(dense.times),
        "tpot_s": median(side.times),
        "decode": found.estimate,
        "decode_interval": found.pair,
        "layers_left_out": saved,
        "time_saved": 1 - 1 / found.estimate,
        "share": (1 - 1 / found.estimate) / saved,
        "path": side.engine.path(batch),
    }


def _table(document: dict[str, Any]) -> Any:
    title = f"{document['model']}, {document['threads']} thread(s)"
    made = output.table(
        title,
        ">batch",
        "cache",
        ">ms a token",
        ">of dense",
        ">layers saved",
        ">time saved",
        ">share",
    )
    for row in document["rows"]:
        low, high = row["decode_interval"]
        made.add_row(
            str(row["batch"]),
            row["kv"],
            f"{row['tpot_s'] * 1e3:.1f}",
            f"{row['decode']:.2f}× ({low:.2f}–{high:.2f})",
            f"{row['layers_left_out']:.1%}",
            f"{row['time_saved']:.1%}",
            f"{row['share']:.0%}",
        )
    return made


if __name__ == "__main__":
    typer.run(main)
