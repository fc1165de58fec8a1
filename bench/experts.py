"""What prompt-adaptive experts win on the clock, beside the dense engine and the published way.

    python bench/experts.py --model random:llama-1.1b,layers=8 --threads 1 --json experts.json

The published way of GRIFFIN is rebuilt here on transformers: after the prompt the chosen rows are
copied into new linear layers, which stand beside the dense ones, and the model's own code decodes
with `DynamicCache`. All sides read one prompt, then take turns of a few decode steps each.

With `--decode eager` (or compiled) torch decodes: from rows in place, from the engine's buffers,
into which the kept rows are gathered once a prompt, and by what `auto` decided.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Protocol

import torch
import typer
from torch import Tensor, nn
from transformers import DynamicCache

import skimp
from skimp import kernels
from skimp.cli import output
from skimp.engine import Engine
from skimp.engine.engine import Decode
from skimp.engine.ways import Asked
from skimp.measure.cost import byte_bound
from skimp.measure.machine import identity
from skimp.measure.statistics import median_interval
from skimp.methods.experts.section import Experts
from skimp.methods.experts.select import choose
from skimp.methods.experts.statistic import squares
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import RichProgress
from skimp.workload import Workload

_STEPS = 4  # a turn
_READS = 7  # of the prompt
_PROMPT = 512


class Side(Protocol):
    """Something that read prompts and goes on; `prefill_s`: what that took, `first_s`: what the
    first token after it took."""

    times: list[float]

    @property
    def prefill_s(self) -> float: ...

    @property
    def first_s(self) -> float: ...

    def step(self) -> None: ...


@dataclass
class Skimp:
    engine: Engine
    ids: Tensor
    new: int

    def __post_init__(self) -> None:
        self.times: list[float] = []
        self.engine.warm_up(len(self.ids))
        self.reads: list[float] = []
        self.firsts: list[float] = []
        logits, self.state = self.engine.prefill(self.ids, self.new)
        self._token = logits.argmax(-1)
        self.step()

    @property
    def prefill_s(self) -> float:
        return median(self.reads)

    @property
    def first_s(self) -> float:
        return median(self.firsts)

    def read(self) -> None:
        start = time.perf_counter()
        logits, state = self.engine.prefill(self.ids, 1)
        token, read = logits.argmax(-1), time.perf_counter()
        self.engine.decode(state, token)
        self.firsts.append(time.perf_counter() - read)
        self.reads.append(read - start)

    def step(self) -> None:
        self._token = self.engine.decode(self.state, self._token).argmax(-1)

    def carried_bytes(self) -> int:
        """What the request carries for its experts, and the buffers of copies, if any."""
        carried: Any = self.state.experts
        if carried is None:
            return 0
        way = self.engine.experts_way(len(self.ids))
        held = [*carried.sums.values(), *carried.totals.values(), carried.counts]
        for chosen in carried.chosen.values():
            held += [t for t in (chosen.rows, chosen.mask, chosen.fill) if t is not None]
        return sum(tensor.nbytes for tensor in held) + (way.bytes if way else 0)


class Copying:
    """The published way, for Llama's layers: batch 1, copies in new linear layers."""

    def __init__(self, model: Any, ids: Tensor, keep: float) -> None:
        self.times: list[float] = []
        self._model, self._cache = model, DynamicCache(config=model.config)
        seen: dict[int, Tensor] = {}
        ffns = [layer.mlp for layer in model.model.layers]
        handles = [
            ffn.down_proj.register_forward_pre_hook(
                lambda _, args, at=at: seen.__setitem__(at, squares(args[0]))
            )
            for at, ffn in enumerate(ffns)
        ]
        start = time.perf_counter()
        logits = self._forward(ids)
        self.prefill_s = time.perf_counter() - start
        for handle in handles:
            handle.remove()
        self._token = logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        self._whole = [(ffn.gate_proj, ffn.up_proj, ffn.down_proj) for ffn in ffns]
        counts = torch.tensor([ids.shape[1]])
        section = Experts(keep=keep)
        self._thin = []
        for at, maps in enumerate(self._whole):
            width = maps[0].out_features
            rows = choose(seen[at], counts, section.count(at, width), section, at).rows.long()
            self._thin.append(
                (*(_linear(m.weight[rows]) for m in maps[:2]), _linear(maps[2].weight[:, rows]))
            )
        self.step()
        self.first_s = time.perf_counter() - start

    def step(self) -> None:
        self._put(self._thin)
        self._token = self._forward(self._token)[:, -1:].argmax(-1)
        self._put(self._whole)

    def _forward(self, ids: Tensor) -> Tensor:
        return self._model(input_ids=ids, past_key_values=self._cache, logits_to_keep=1).logits

    def _put(self, maps: list[Any]) -> None:
        for layer, (gate, up, down) in zip(self._model.model.layers, maps, strict=True):
            layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj = gate, up, down


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight.clone().contiguous(), requires_grad=False)
    return made


def main(
    model: Annotated[str, typer.Option()] = "random:llama-1.1b,layers=8",
    keep: Annotated[float, typer.Option(min=0.01, max=0.99)] = 0.5,
    batch: Annotated[int, typer.Option(min=2, max=16)] = 8,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    turns: Annotated[int, typer.Option(min=6)] = 24,
    decode: Annotated[Decode, typer.Option()] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Time experts at batch 1 and in a batch; print what they win and what they cost."""
    output.check_file(json_file, "--json")
    torch.set_num_threads(threads)
    kernels.set_threads(threads)
    loaded = skimp.load(model, dtype="bfloat16").model
    empty = Plan.empty(Anatomy.of(loaded))
    rows = []
    with RichProgress().task("turns", 2 * turns) as done, torch.inference_mode():
        for size in (1, batch):
            random = torch.Generator().manual_seed(size)
            ids = torch.randint(5, 3000, (size, _PROMPT), generator=random)
            new = (1 + turns) * _STEPS + 1
            plans = {"experts": {"keep": keep}}
            plans |= {"shared": {"keep": keep, "batch": "shared"}} if size > 1 else {}
            engines = {"dense": Engine(loaded, decode=decode)}
            for name, section in plans.items():
                plan = empty.with_section("experts", section)
                by_torch = decode in ("eager", "compiled")
                way: Asked = "in place" if by_torch else "auto"
                engines[name] = Engine(loaded, plan, decode=decode, experts=way)
                if by_torch and (size == 1 or name == "shared"):
                    engines["gathered"] = Engine(loaded, plan, decode=decode, experts="gathered")
                    engines["auto"] = Engine(loaded, plan, decode=decode)
            sides: dict[str, Any] = {n: Skimp(e, ids, new) for n, e in engines.items()}
            for turn in range(_READS if size == 1 else 1):
                for each in list(sides.values())[:: -1 if turn % 2 else 1]:
                    each.read()
            if size == 1:
                sides["copying"] = Copying(loaded, ids, keep)
            for turn in range(turns):
                for side in list(sides.values())[:: -1 if turn % 2 else 1]:
                    side.times.append(_turn(side))
                done()
            work = Workload(_PROMPT, new, size)
            rows += [_row(name, sides, engines, work) for name in sides if name != "dense"]
    document: dict[str, Any] = {
        "machine": identity(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": model,
        "keep": keep,
        "threads": threads,
        "turns": turns,
        "decode": decode,
        "rows": rows,
    }
    output.console().print(_table(document))
    if json_file is not None:
        output.write_text(json_file, output.dump(document), "--json")


def _turn(side: Side) -> float:
    steps = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        side.step()
        steps.append(time.perf_counter() - start)
    return median(steps)


def _row(
    name: str, sides: dict[str, Any], engines: dict[str, Engine], work: Workload
) -> dict[str, Any]:
    dense, side = sides["dense"], sides[name]
    found = median_interval([d / p for d, p in zip(dense.times, side.times, strict=True)])
    step, whole = median(side.times), median(dense.times)
    # Beyond what the dense engine spends until its first decoded token is done.
    extra = side.prefill_s + side.first_s - dense.prefill_s - dense.first_s
    made: dict[str, Any] = {
        "way": name,
        "batch": work.batch,
        "dense_tpot_s": whole,
        "tpot_s": step,
        "decode": found.estimate,
        "decode_interval": found.pair,
        "prefill_s": side.prefill_s,
        "dense_prefill_s": dense.prefill_s,
        "choosing_s": side.first_s - step,
        "break_even_tokens": max(0.0, 1 + extra / (whole - step)) if whole > step else None,
    }
    if name in engines:
        weights = sum(p.nbytes for p in engines[name].model.parameters())
        made["bound"] = byte_bound(engines["dense"].anatomy, engines[name].anatomy, work)
        decided = engines[name].experts_way(work.batch)
        made["decided"] = None if decided is None else asdict(decided)
        made["extra_memory"] = side.carried_bytes() / weights
        chosen = side.state.experts.chosen
        widths = {layer: total.shape[1] for layer, total in side.state.experts.sums.items()}
        made["rows_read"] = sum(len(c.rows) for c in chosen.values()) / sum(widths.values())
    return made


def _table(document: dict[str, Any]) -> Any:
    title = f"{document['model']}, keep {document['keep']}, {document['threads']} thread(s)"
    names = (">batch", "way", ">ms a token", ">of dense", ">bound", ">choosing ms", ">break-even")
    made = output.table(title, *names)
    for row in document["rows"]:
        low, high = row["decode_interval"]
        even = row["break_even_tokens"]
        made.add_row(
            str(row["batch"]),
            row["way"],
            f"{row['tpot_s'] * 1e3:.1f}",
            f"{row['decode']:.2f}× ({low:.2f}–{high:.2f})",
            f"{row['bound']:.2f}×" if "bound" in row else "–",
            f"{row['choosing_s'] * 1e3:.1f}",
            "never" if even is None else f"{even:.1f} tokens",
        )
    return made


if __name__ == "__main__":
    typer.run(main)
