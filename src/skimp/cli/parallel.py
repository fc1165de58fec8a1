"""What a model would take on several devices, for the verbs that take `--tensor-parallel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skimp.cli import output
from skimp.cli.common import Run
from skimp.cli.figures import count, seconds, size, times
from skimp.errors import SkimpError

if TYPE_CHECKING:
    from skimp.models.anatomy import Anatomy
    from skimp.plan import Plan
    from skimp.workload import Workload


def check(devices: int, link: str | None) -> None:
    """Refuse a link that is none, or that nothing uses, before a model is loaded."""
    from skimp.measure.parallel import Link

    if link is None:
        return
    Link.parse(link)
    if devices == 1:
        raise SkimpError("--link: nothing is exchanged on one device; give --tensor-parallel too.")


def require(anatomy: Anatomy, devices: int) -> None:
    """Refuse a model that cannot be split so, before anything is measured or chosen."""
    from skimp.measure.parallel import split

    split(anatomy, devices)


def describe(
    run: Run,
    dense: Anatomy,
    planned: Anatomy | Plan | None,
    work: Workload,
    dtype: str,
    devices: int,
    link: str | None,
) -> dict[str, Any] | None:
    """The documents' key `tensor_parallel`: None on one device."""
    if devices == 1:
        return None
    import torch

    from skimp.measure.machine import profile
    from skimp.measure.parallel import Link
    from skimp.methods.registry import reduce
    from skimp.models.placement import resolve_device
    from skimp.plan import Plan

    require(dense, devices)
    if isinstance(planned, Plan):
        planned = reduce(planned, dense)
    over = Link() if link is None else Link.parse(link)
    machine = profile(resolve_device(run.device), getattr(torch, dtype), progress=run.progress)
    sides = {
        name: _side(each, work, machine, devices, over)
        for name, each in (("dense", dense), ("planned", planned))
        if each is not None
    }
    return {
        "devices": devices,
        "link": {"bandwidth": over.bandwidth, "latency": over.latency},
        "measured": machine.as_dict(),
        "workload": str(work),
        "planned": None,
        **sides,
    }


def _side(anatomy: Anatomy, work: Workload, machine: Any, devices: int, link: Any) -> Any:
    from skimp.measure import cost, parallel

    share = parallel.split(anatomy, devices)
    found = parallel.predict(anatomy, work, machine, devices=devices, link=link)
    return {
        "weight_bytes": share.weight_bytes,
        "kv_bytes_per_token": share.kv_bytes_per_token,
        "decode_bytes": cost.decode_cost(share, work).bytes,
        "all_reduces": parallel.all_reduces(anatomy),
        **found.as_dict(),
    }


def show(run: Run, found: dict[str, Any] | None) -> None:
    """Print the figures of one device and the times foretold; nothing on one device."""
    if found is None:
        return
    sides = [found[name] for name in ("dense", "planned") if found[name] is not None]
    names = ("dense", "planned", "dense/planned") if len(sides) > 1 else ("total",)
    made = output.table(
        f"Each of {found['devices']} devices at workload {found['workload']}, foretold",
        "",
        *(f">{name}" for name in names),
    )
    rows: list[tuple[str, Any, Any]] = [
        ("weight bytes", size, lambda side: side["weight_bytes"]),
        ("KV cache per token", size, lambda side: side["kv_bytes_per_token"]),
        ("bytes read per decode step", size, lambda side: side["decode_bytes"]),
        ("all-reduces per step", count, lambda side: side["all_reduces"]),
        ("exchanging per decode step", seconds, lambda side: side["decode"]["link"]),
        ("decode step", seconds, lambda side: side["tpot_s"]),
        ("prefill", seconds, lambda side: side["prefill_s"]),
    ]
    for words, form, pick in rows:
        values = [pick(side) for side in sides]
        cells = [form(value) for value in values]
        if len(values) > 1:
            cells.append(times(values[0] / values[1] if values[1] else None))
        made.add_row(words, *cells)
    run.console.print(made)
