"""`skimp bench`: prefill and decode on the clock, dense and planned in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import figures as numbers
from skimp.cli import options, output
from skimp.cli.common import Run, check_keep, read_plan, require_dense, with_exit, with_experts

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from skimp.models.load import Loaded
    from skimp.plan import Plan
    from skimp.workload import Workload

_ROWS = {
    "prefill": ("prefill_s", numbers.seconds),
    "time per output token": ("tpot_s", numbers.seconds),
    "tokens per second": ("tokens_per_s", numbers.significant),
    "weights": ("weight_bytes", numbers.size),
    "KV cache per token": ("kv_bytes_per_token", numbers.size),
    "memory at its peak": ("peak_bytes", numbers.size),
    "share of roofline": ("roofline_share", numbers.share),
}

_PHASES = ("prefill", "decode")


def bench(
    ctx: typer.Context,
    model: options.Model,
    plan: options.PlanFile = None,
    experts: options.Keep = None,
    exit: options.ExitFile = None,
    workload: options.WorkloadText = "512+128x1",
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=6, max=10_000, help="Prefills of each side.")
    ] = 10,
    steps: Annotated[
        int,
        typer.Option(
            "--steps", metavar="N", min=1, help="Decode steps of each side and round, at most."
        ),
    ] = 32,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Time prefill and decode of the dense and the planned model, taking turns in one run.

    A plan counts as faster only if the whole 95% interval of its speedup lies
    above 1. The byte bound is the speedup if time were proportional to the
    bytes read. Beside what was measured stands what this machine's rates let
    expect.

    [bold]Examples[/]

    skimp bench demo --plan plan.yaml --json bench.json
    skimp bench random:llama-3.2-1b,layers=4 --workload 1024+64x8 --threads 2
    """
    del debug
    from skimp.models.anatomy import Anatomy
    from skimp.workload import Workload

    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    work = Workload.parse(workload)
    check_keep(experts)
    chosen = read_plan(plan) if plan is not None else None
    loaded = run.load(model)
    if chosen is not None or experts is not None or exit is not None:
        require_dense(loaded, "bench --plan")
    anatomy = Anatomy.of(loaded.model)
    chosen = with_exit(with_experts(chosen, experts, anatomy), exit, anatomy)
    document = measure(run, loaded, chosen, work, rounds=rounds, steps=steps)
    show(run, document)
    run.finish(document)


def measure(
    run: Run, loaded: Loaded, plan: Plan | None, work: Workload, *, rounds: int, steps: int
) -> dict[str, Any]:
    """Time the model with and without the plan; returns the verb's document."""
    from skimp.measure.speed import compare_speed
    from skimp.models.anatomy import Anatomy

    result = compare_speed(
        loaded.model,
        plan,
        work,
        rounds=rounds,
        steps=steps,
        seed=run.seed,
        text=_text(loaded, plan),
        progress=run.progress,
    )
    header = run.loaded_header(loaded, Anatomy.of(loaded.model), plan or loaded.plan)
    return {**header, **result.as_dict(), "measured": result.machine.as_dict()}


def _text(loaded: Loaded, plan: Plan | None) -> Tensor | None:
    """Text to read, where it decides how much is left out; random weights know none."""
    from skimp.calibration.text import bundled_tokens
    from skimp.methods.exit.section import by_exit

    if by_exit(plan) is None or loaded.tokenizer is None:
        return None
    return bundled_tokens(loaded.tokenizer)


def show(run: Run, document: dict[str, Any]) -> None:
    """Print the figures of both sides, what was foretold beside them, and the verdict."""
    run.console.print(_sides(document))
    run.console.print(_decoding(document["engine"]))
    if document["speedup"] is None:
        return
    run.console.print()
    run.console.print(_speedups(document))
    run.console.print(verdict(document))


def _sides(document: dict[str, Any]) -> Table:
    """The figures of each side; below a time that was measured, the time that was predicted."""
    sides = [name for name in ("dense", "planned") if document[name] is not None]
    ratio = ["dense/planned"] if len(sides) > 1 else []
    title = f"Speed at workload {document['workload']}"
    made = output.table(title, "", *(f">{name}" for name in sides + ratio))

    def row(label: str, source: dict[str, Any], name: str, form: numbers.Form) -> None:
        values = [source[side][name] for side in sides]
        made.add_row(label, *map(form, values), *(_ratio(name, *values) for _ in ratio))

    for label, (name, form) in _ROWS.items():
        row(label, document, name, form)
        if name in document["predicted"]["dense"]:
            row("  predicted", document["predicted"], name, form)
    left = (document["planned"] or {}).get("layers_left_out")
    if left is not None:
        made.add_row("layers left out", "", numbers.share(left), "")
    return made


def _ratio(name: str, dense: float, planned: float) -> str:
    """Dense over planned; a ratio of rates or shares would read the wrong way round."""
    if name in ("tokens_per_s", "roofline_share"):
        return ""
    return numbers.times(dense / planned if planned else None)


def _decoding(engine: dict[str, Any]) -> str:
    """What decoded each side, and where it was not the native program, why."""
    threads = engine["threads"]
    native = f"natively, {threads} thread{'s' if threads > 1 else ''}"
    said = {
        name: f"by {side['path']} ({side['reason']})" if side["reason"] else native
        for name in ("dense", "planned")
        if (side := engine[name]) is not None
    }
    if len(set(said.values())) == 1:
        return f"Decoded {said['dense']}."
    return "Decoded " + "; ".join(f"{name} {how}" for name, how in said.items()) + "."


def _speedups(document: dict[str, Any]) -> Table:
    """Both speedups beside what was foretold and what bytes and FLOPs bound."""
    speedup, collected = document["speedup"], document["collected"]
    bounds = {**document["compute_bound"], **document["byte_bound"]}
    made = output.table("Dense time over planned time", "", *(f">{name}" for name in _PHASES))

    def row(label: str, cell: Callable[[str], str]) -> None:
        made.add_row(label, *(cell(name) for name in _PHASES))

    def interval(name: str) -> str:
        low, high = speedup[f"{name}_interval"]
        return f"{low:.3f} to {high:.3f}"

    row("speedup", lambda name: numbers.times(speedup[name]))
    row("95% interval", interval)
    row("predicted", lambda name: numbers.times(document["predicted"]["speedup"][name]))
    row("bound (prefill FLOPs, decode bytes)", lambda name: numbers.times(bounds[name]))
    row("speedup / bound", lambda name: numbers.share(collected[name]["share"]))
    row("gain collected", lambda name: _gain(collected[name]["gain"]))
    return made


def _gain(share: float | None) -> str:
    """The share of a bound's gain; less than nothing of it is nothing."""
    return numbers.share(None if share is None else max(0.0, share))


def verdict(document: dict[str, Any]) -> str:
    """The sentence that calls a plan faster or not, with the reason in bytes."""
    from skimp.report.documents import read_speed
    from skimp.report.reader import Reader
    from skimp.report.words import decode_verdict

    found = decode_verdict(read_speed(Reader(output.plain(document), "bench", [])))
    return f"{found.headline} {found.reason}".strip()
