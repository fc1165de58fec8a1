"""`skimp inspect`: what a model is made of and what a decode step spends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from skimp.cli import options, output, parallel
from skimp.cli.common import Run, dropped_of, dtype_of, layer_words, read_plan
from skimp.cli.figures import count, share, significant, size, times
from skimp.errors import PlanError

if TYPE_CHECKING:
    from skimp.measure.cost import Cost
    from skimp.models.anatomy import Anatomy, Layer, Part, Sublayer
    from skimp.plan import Plan
    from skimp.workload import Workload

KIND_WORDS = {
    "attention": "attention weights",
    "ffn": "ffn weights",
    "head": "head",
    "embedding": "embedding rows",
    "kv": "KV cache",
    "other": "norms and the rest",
}


def inspect(
    ctx: typer.Context,
    model: options.Model,
    workload: options.WorkloadText = "512+128x1",
    plan: options.PlanFile = None,
    tensor_parallel: options.TensorParallel = 1,
    link: options.LinkText = None,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Show what a model is made of: layers, shapes, parameters, bytes, FLOPs, KV cache.

    Bytes and FLOPs are counted, not measured. A random: shape is not even allocated.

    [bold]Examples[/]

    skimp inspect demo
    skimp inspect random:llama-3.1-8b --dtype bfloat16 --workload 8192+256x4
    skimp inspect demo --plan plan.yaml --json anatomy.json
    skimp inspect random:llama-3.1-8b --tensor-parallel 4 --link 400,10
    """
    del debug
    from skimp.workload import Workload

    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    work = Workload.parse(workload)
    parallel.check(tensor_parallel, link)
    chosen = read_plan(plan) if plan is not None else None
    anatomy, number_format, known, carried = read_anatomy(run, model)
    if chosen is not None and carried is not None and any(carried.sections.values()):
        raise PlanError(f"--plan: {model} carries a plan of its own; give it to the dense model.")
    planned = _reduce(chosen, anatomy, known)
    several = parallel.describe(run, anatomy, planned, work, number_format, tensor_parallel, link)
    show(run, anatomy, planned, chosen or carried, work)
    parallel.show(run, several)
    header = run.header(model, anatomy, number_format, chosen or carried)
    if not known:
        header["model"]["fingerprint"] = None
    run.finish(
        {
            **header,
            **describe(anatomy, work),
            "planned": planned and describe(planned, work),
            "tensor_parallel": several,
        }
    )


def read_anatomy(run: Run, source: str) -> tuple[Anatomy, str, bool, Plan | None]:
    """(anatomy, dtype, whether its fingerprint is that of real weights, the plan it carries)."""
    from skimp.models.anatomy import Anatomy

    if not source.startswith("random:"):
        loaded = run.load(source)
        return Anatomy.of(loaded.model), dtype_of(loaded.model), True, loaded.plan
    import torch
    from transformers import AutoModelForCausalLM

    from skimp.models import shapes
    from skimp.models.placement import resolve_device, resolve_dtype
    from skimp.models.quiet import quiet

    wanted = shapes.parse(source, seed=run.seed)
    number_format = resolve_dtype(run.dtype, resolve_device(run.device))
    config = shapes.config(wanted.shape, layers=wanted.layers)
    with quiet(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=number_format)
    return Anatomy.of(model), dtype_of(model), False, None


def _reduce(plan: Plan | None, anatomy: Anatomy, known: bool) -> Anatomy | None:
    from skimp.methods.registry import reduce

    if plan is None:
        return None
    if not known:  # no weights were drawn, so only type and layers can be compared
        anatomy = replace(anatomy, fingerprint=plan.model.fingerprint)
    return reduce(plan, anatomy)


def show(
    run: Run, anatomy: Anatomy, planned: Anatomy | None, plan: Plan | None, work: Workload
) -> None:
    """Print the layers (of the planned model, if there is a plan), the totals and the shares."""
    shown = planned or anatomy
    console = run.console
    console.print(_layers_table(shown))
    if plan is not None and any(plan.sections.values()):
        gone = dropped_of(plan)
        for kind, layers in gone.items():
            console.print(f"left out: {kind} of layers {layer_words(layers)}")
        console.print()
    console.print(_totals_table(anatomy, planned, work))
    console.print(_shares_table(anatomy, planned, work))


def describe(anatomy: Anatomy, work: Workload) -> dict[str, Any]:
    """The anatomy and its cost at a workload, as plain data."""
    from skimp.measure import cost

    decode, prefill = cost.decode_cost(anatomy, work), cost.prefill_cost(anatomy, work)
    return {
        "layers": [
            {
                "layers": list(sources),
                "attention": _sublayer_data(layer.attention, anatomy),
                "ffn": _sublayer_data(layer.ffn, anatomy),
                "shared": [_part_data(part) for part in layer.shared],
            }
            for sources, layer in groups(anatomy)
        ],
        "outside": [_part_data(part) for part in (anatomy.embedding, *anatomy.rest, anatomy.head)],
        "tied": anatomy.tied,
        "totals": {
            "parameters": anatomy.parameters,
            "weight_bytes": anatomy.weight_bytes,
            "kv_bytes_per_token": anatomy.kv_bytes_per_token,
            "context_length": anatomy.context_length,
            "peak_bytes": cost.peak_bytes(anatomy, work),
        },
        "workload": str(work),
        "decode": _cost_data(decode),
        "prefill": _cost_data(prefill),
        "shares": cost.shares(anatomy, work),
    }


def groups(anatomy: Anatomy) -> list[tuple[tuple[int, ...], Layer]]:
    """Layers that are alike, together: (their places in the dense model, one of them)."""
    found: dict[Layer, list[int]] = {}
    for layer in anatomy.layers:
        found.setdefault(_bare(layer, anatomy), []).append(layer.source)
    return [(tuple(sources), layer) for layer, sources in found.items()]


def _bare(layer: Layer, anatomy: Anatomy) -> Layer:
    """The layer with paths relative to itself, so that equal layers compare equal."""

    def strip(parts: tuple[Part, ...]) -> tuple[Part, ...]:
        start = f"{anatomy.family.layers}."
        return tuple(
            replace(part, path=part.path.removeprefix(start).partition(".")[2]) for part in parts
        )

    return replace(
        layer,
        source=0,
        attention=replace(layer.attention, parts=strip(layer.attention.parts)),
        ffn=replace(layer.ffn, parts=strip(layer.ffn.parts)),
        shared=strip(layer.shared),
    )


def _sublayer_data(sublayer: Sublayer, anatomy: Anatomy) -> dict[str, Any]:
    return {
        "state": sublayer.state,
        "parameters": sublayer.parameters,
        "bytes": sublayer.bytes,
        "active_bytes": sublayer.active_bytes,
        "flops_per_token": sublayer.flops_per_token,
        "kv_bytes_per_token": sublayer.kv_elements * anatomy.element_bytes,
        "heads": sublayer.heads or None,
        "kv_heads": sublayer.kv_heads or None,
        "head_dim": sublayer.head_dim or None,
        "window": sublayer.window,
        "parts": [_part_data(part) for part in sublayer.parts],
    }


def _part_data(part: Part) -> dict[str, Any]:
    return {
        "name": part.path,
        "role": part.role,
        "shape": list(part.shape),
        "parameters": part.parameters,
        "bytes": part.bytes,
    }


def _cost_data(cost: Cost) -> dict[str, Any]:
    return {"bytes": cost.bytes, "flops": cost.flops}


def _layers_table(anatomy: Anatomy) -> Any:
    made = output.table(
        f"{anatomy.model_type}, {len(anatomy.layers)} layers, hidden size {anatomy.hidden_size}",
        *("layers", "part", "shape", ">parameters", ">bytes", ">FLOPs/token", ">KV/token"),
        ">window",
    )
    for sources, layer in groups(anatomy):
        label = layer_words(sources)
        for sublayer in (layer.attention, layer.ffn):
            made.add_row(label, *_sublayer_row(sublayer, anatomy), style="bold")
            for part in sublayer.parts:
                made.add_row(*_part_row(part, "  "))
            label = ""
        for part in layer.shared:
            made.add_row(*_part_row(part, ""))
        made.add_section()
    for part in (anatomy.embedding, *anatomy.rest):
        made.add_row(*_part_row(part, ""))
    made.add_row(*_head_row(anatomy))
    return made


def _sublayer_row(sublayer: Sublayer, anatomy: Anatomy) -> Iterator[str]:
    kept = sublayer.state == "keep"
    yield sublayer.kind if kept else f"{sublayer.kind} → {sublayer.state}"
    yield f"{sublayer.heads} heads, {sublayer.kv_heads} KV heads" if sublayer.heads else ""
    yield count(sublayer.parameters)
    yield size(sublayer.bytes)
    yield flops(sublayer.flops_per_token)
    yield size(sublayer.kv_elements * anatomy.element_bytes) if sublayer.kv_elements else ""
    yield count(sublayer.window) if sublayer.window else ""


def _part_row(part: Part, indent: str) -> tuple[str, ...]:
    shape = " × ".join(str(length) for length in part.shape)
    return ("", f"{indent}{part.path}", shape, count(part.parameters), size(part.bytes))


def _head_row(anatomy: Anatomy) -> tuple[str, ...]:
    head = anatomy.head
    shape = " × ".join(str(length) for length in head.shape)
    if anatomy.tied:
        return ("", f"{head.path} (tied)", shape, "", "")
    return ("", head.path, shape, count(head.parameters), size(head.bytes))


def _totals_table(anatomy: Anatomy, planned: Anatomy | None, work: Workload) -> Any:
    names = ("dense", "planned", "dense/planned") if planned is not None else ("total",)
    made = output.table(f"Totals at workload {work}", "", *(f">{name}" for name in names))
    second = _totals(planned, work) if planned is not None else {}
    for name, (value, form) in _totals(anatomy, work).items():
        cells = [form(value)]
        if name in second:
            other = second[name][0]
            cells += [form(other), times(value / other if other else None)]
        made.add_row(name, *cells)
    return made


def _totals(anatomy: Anatomy, work: Workload) -> dict[str, tuple[float, Any]]:
    from skimp.measure import cost

    decode, prefill = cost.decode_cost(anatomy, work), cost.prefill_cost(anatomy, work)
    return {
        "parameters": (anatomy.parameters, count),
        "weight bytes": (anatomy.weight_bytes, size),
        "KV cache per token": (anatomy.kv_bytes_per_token, size),
        "memory, estimated": (cost.peak_bytes(anatomy, work), size),
        "bytes read per decode step": (decode.bytes, size),
        "FLOPs per decode step": (decode.flops, flops),
        "FLOPs of the prefill": (prefill.flops, flops),
    }


def _shares_table(anatomy: Anatomy, planned: Anatomy | None, work: Workload) -> Any:
    from skimp.measure import cost

    sides = [anatomy] if planned is None else [anatomy, planned]
    names = ("bytes", "share") if planned is None else ("dense", "share", "planned", "share")
    made = output.table(f"Where a decode step's bytes go, {work}", "", *(f">{n}" for n in names))
    costs = [cost.decode_cost(side, work) for side in sides]
    for kind, words in KIND_WORDS.items():
        cells: list[str] = []
        for each in costs:
            read = each.kinds()[kind].bytes
            cells += [size(read), share(read / each.bytes)]
        made.add_row(words, *cells)
    return made


def flops(value: float) -> str:
    """FLOPs with a decimal prefix, `1.23 G`."""
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{significant(value / factor)} {unit}"
    return significant(value)
