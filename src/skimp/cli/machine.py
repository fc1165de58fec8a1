"""`skimp machine`: how fast this machine reads, multiplies and launches."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

import skimp
from skimp.cli import options, output
from skimp.cli.common import Run
from skimp.cli.figures import share, significant, size

if TYPE_CHECKING:
    import torch

    from skimp.measure.machine import Machine


def machine(
    ctx: typer.Context,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again; the better rates are kept.")
    ] = False,
    json_file: options.JsonFile = None,
    device: options.Device = "cpu",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="Only this one: float32, bfloat16 or float16 (auto: those that models run in).",
            rich_help_panel="Common options",
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            min=1,
            max=4096,
            help="Only with so many CPU threads; by default one, and torch's own choice.",
            show_default=False,
            rich_help_panel="Common options",
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Show how fast this machine reads, multiplies and launches.

    These rates are the yardstick that measured and predicted times are held
    against. They are measured once and kept. A profile that was taken while the
    machine was busy is not steady, and is measured again when it is next needed.

    [bold]Examples[/]

    skimp machine
    skimp machine --dtype bfloat16 --threads 1 --fresh --json machine.json
    """
    del debug
    run = Run.start(ctx, json_file=json_file, device=device, dtype=dtype)
    found = profiles(run, threads, fresh=fresh)
    document = describe(run, found)
    show(run, document)
    run.finish(document)


def profiles(run: Run, threads: int | None, *, fresh: bool) -> list[Machine]:
    """Measure, or look up, every dtype with every number of threads that was asked for."""
    from skimp.measure.machine import profile
    from skimp.models.placement import resolve_device

    device = resolve_device(run.device)
    return [
        profile(device, dtype, count, fresh=fresh, progress=run.progress)
        for dtype in _dtypes(run, device)
        for count in _threads(device, threads)
    ]


def _dtypes(run: Run, device: torch.device) -> list[torch.dtype]:
    import torch

    from skimp.models.placement import resolve_dtype

    if run.dtype != "auto":
        return [resolve_dtype(run.dtype, device)]
    halves = [torch.bfloat16] if device.type == "cpu" else [torch.bfloat16, torch.float16]
    return [*halves, torch.float32]


def _threads(device: torch.device, wanted: int | None) -> list[int]:
    """One and all; a GPU does not care."""
    import torch

    if wanted is not None:
        return [wanted]
    every = torch.get_num_threads()
    return [1, every] if device.type == "cpu" and every > 1 else [every]


def describe(run: Run, found: list[Machine]) -> dict[str, Any]:
    """The verb's document."""
    from skimp.measure.machine import identity
    from skimp.measure.probes import native_state

    return {
        "skimp": skimp.__version__,
        "model": None,
        "plan": None,
        "seed": run.seed,
        "device": run.device,
        "machine": {**identity(), **_device_facts(run)},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": run.command,
        "kernels": native_state(),
        "profiles": [profile.as_dict() for profile in found],
    }


def _device_facts(run: Run) -> dict[str, Any]:
    """Name and memory of the GPU that was asked for."""
    import torch

    if not run.device.startswith("cuda"):
        return {}
    facts = torch.cuda.get_device_properties(run.device)
    return {"gpu": facts.name, "gpu_memory": facts.total_memory}


def show(run: Run, document: dict[str, Any]) -> None:
    """Print what the machine is, then its rates."""
    about = document["machine"]
    run.console.print(f"CPU: {about['cpu']}, {about['cores']} cores, {size(about['memory'])}")
    if "gpu_memory" in about:
        run.console.print(f"GPU: {about['gpu']}, {size(about['gpu_memory'])}")
    isa, why_not = document["kernels"]["isa"], document["kernels"]["why_not"]
    run.console.print(f"native kernels: {isa or f'none ({why_not})'}")
    made = output.table(
        None,
        "dtype",
        ">threads",
        ">bandwidth GB/s",
        ">matmul GFLOP/s",
        ">launch µs",
        ">spread",
        ">busy",
        "steady",
        "measured (UTC)",
    )
    for profile in document["profiles"]:
        made.add_row(
            profile["dtype"],
            str(profile["threads"]),
            significant(profile["bandwidth"] / 1e9),
            significant(profile["matmul"] / 1e9),
            significant(profile["launch"] * 1e6),
            share(_widest(profile["spread"].values())),
            share(profile["busy"]),
            "yes" if profile["steady"] else "no",
            profile["measured"].removesuffix("+00:00").replace("T", " "),
        )
    run.console.print(made)
    if not all(profile["steady"] for profile in document["profiles"]):
        run.console.print(
            "Not steady: tries differed (spread) or other programs ran (busy), so the rates may be "
            "too low; they are measured again when they are next needed."
        )


def _widest(spreads: Collection[float | None]) -> float | None:
    """None, shown as a gap, if a rate was never tried on a machine left alone."""
    known = [spread for spread in spreads if spread is not None]
    return max(known) if len(known) == len(spreads) else None
