"""`skimp bench`: prefill and decode on the clock, dense and planned in turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import figures as numbers
from skimp.cli import options, output
from skimp.cli.common import Run, read_plan, require_dense

if TYPE_CHECKING:
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


def bench(
    ctx: typer.Context,
    model: options.Model,
    plan: options.PlanFile = None,
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
    bytes read.

    [bold]Examples[/]

    skimp bench demo --plan plan.yaml --json bench.json
    skimp bench random:llama-3.2-1b,layers=4 --workload 1024+64x8 --threads 2
    """
    del debug
    from skimp.workload import Workload

    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    work = Workload.parse(workload)
    chosen = read_plan(plan) if plan is not None else None
    loaded = run.load(model)
    if chosen is not None:
        require_dense(loaded, "bench --plan")
    document = measure(run, loaded, chosen, work, rounds=rounds, steps=steps)
    show(run, document)
    run.finish(document)


def measure(
    run: Run, loaded: Loaded, plan: Plan | None, work: Workload, *, rounds: int, steps: int
) -> dict[str, Any]:
    """Time the model with and without the plan; returns the verb's document."""
    from skimp.measure.speed import compare_speed
    from skimp.methods.apply import apply
    from skimp.methods.registry import check
    from skimp.models.anatomy import Anatomy

    anatomy = Anatomy.of(loaded.model)
    if plan is not None:
        check(plan, anatomy)
    switch = None if plan is None else (lambda: apply(loaded.model, plan, anatomy=anatomy))
    result = compare_speed(
        loaded.model,
        switch,
        work,
        rounds=rounds,
        steps=steps,
        seed=run.seed,
        progress=run.progress,
    )
    header = run.loaded_header(loaded, anatomy, plan or loaded.plan)
    return {**header, **result.as_dict(), "measured": result.machine.as_dict()}


def show(run: Run, document: dict[str, Any]) -> None:
    """Print the figures of both sides, and the verdict."""
    dense, planned, speedup = (document[name] for name in ("dense", "planned", "speedup"))
    names = (">dense",) if planned is None else (">dense", ">planned", ">dense/planned")
    made = output.table(f"Speed at workload {document['workload']}", "", *names)
    for label, (name, form) in _ROWS.items():
        cells = [form(dense[name])]
        if planned is not None:
            cells.append(form(planned[name]))
            # A ratio of rates or shares would read the wrong way round.
            ratio = dense[name] / planned[name] if planned[name] else None
            cells.append("" if name in ("tokens_per_s", "roofline_share") else numbers.times(ratio))
        made.add_row(label, *cells)
    run.console.print(made)
    if speedup is None:
        return
    for name in ("prefill", "decode"):
        low, high = speedup[f"{name}_interval"]
        run.console.print(
            f"{name} speedup: {numbers.times(speedup[name])}, 95% interval {low:.3f} to {high:.3f}"
        )
    run.console.print(f"decode byte bound: {numbers.times(document['byte_bound']['decode'])}")
    run.console.print(verdict(document))


def verdict(document: dict[str, Any]) -> str:
    """The sentence that calls a plan faster or not, with the reason in bytes."""
    from skimp.report.documents import read_speed
    from skimp.report.reader import Reader
    from skimp.report.words import decode_verdict

    found = decode_verdict(read_speed(Reader(output.plain(document), "bench", [])))
    return f"{found.headline} {found.reason}".strip()
