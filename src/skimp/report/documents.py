"""From plain JSON documents (`plan`, `eval`, `bench`) to the facts a report shows."""

import math
import re
from collections.abc import Mapping

from skimp.report.facts import (
    PARTS,
    Calibration,
    Collected,
    Decoder,
    Decoders,
    Estimate,
    Fidelity,
    Fill,
    Importance,
    Part,
    Predicted,
    Quality,
    Sample,
    Selection,
    Side,
    Speed,
    Step,
    Task,
)
from skimp.report.reader import MAX_LAYERS, Reader

_NOT_A_SHARE = re.compile(r"perplexity|ppl|bits|loss|nll|likelihood|bleu|rouge|ter$", re.IGNORECASE)
_EVAL_KEYS = ("tasks", "mean", "fidelity", "skimp")
_INTERVALS = {"loss_difference": "loss_interval"}
_SECTIONS = ("experts", "exit", "weights", "lossless")


def read_fill(text: str | None) -> Fill:
    """`zero`, `mean`, `linear` or `linear:RANK`; anything else is kept as its own word."""
    if not text:
        return Fill()
    kind, _, rank = text.partition(":")
    return Fill(kind.strip() or "zero", int(rank) if rank.strip().isdecimal() else None)


def dropped_in(document: Reader) -> tuple[tuple[int, ...], tuple[int, ...], Fill] | None:
    """(attention, ffn, fill) a document says were left out; None if it does not say.

    Looked for under `dropped`, in the plan's own `drop` section (`plan.drop`, `plan.sections.drop`)
    and in the document itself, for a plan file passed as it is.
    """
    plan = document.child("plan")
    places = [document.child("dropped")]
    if isinstance(plan.value, Mapping):
        places += [plan.child("drop"), plan.child("sections").child("drop")]
    places.append(document.child("drop"))
    for place in places:
        if isinstance(place.value, Mapping):
            fill = document.text("fill") or place.text("fill")
            return place.layers("attention"), place.layers("ffn"), read_fill(fill)
    # A plan that is there but has no drop section is a plan that drops nothing.
    return ((), (), Fill()) if isinstance(plan.value, Mapping) else None


def _layer_count(document: Reader) -> int | None:
    plan = document.child("plan")
    nodes = [document.child("layers")]
    for model in (document.child("model"), plan):
        if isinstance(model.value, Mapping):
            nodes.append(model.child("layers"))
            if isinstance(model.value.get("model"), Mapping):
                nodes.append(model.child("model").child("layers"))
    for node in nodes:
        number = node.as_number()
        if number is not None and 1 <= number <= MAX_LAYERS:
            return int(number)
    return None


def read_importance(node: Reader) -> tuple[Importance, ...]:
    """`{rule: {attention: [...], ffn: [...]}}`; a rule without any score is dropped."""
    found = (
        Importance(rule, *(scores.scores(part) for part in PARTS)) for rule, scores in node.items()
    )
    return tuple(item for item in found if item.scored)


def _read_path(node: Reader) -> tuple[Step, ...]:
    steps: list[Step] = []
    for item in node.elements():
        kind: Part | None = next((part for part in PARTS if item.text("kind") == part), None)
        layer = item.child("layer").as_layer()
        if kind is None or layer is None:
            node.note("a list of steps with a kind (attention, ffn or layer) and a layer")
            continue
        steps.append(Step(kind, layer, item.number("harm")))
    return tuple(steps)


def _read_calibration(node: Reader) -> Calibration | None:
    if not node:
        return None
    return Calibration(
        documents=node.number("documents"),
        tokens=node.number("tokens"),
        source=node.text("source"),
        seed=node.text("seed"),
    )


def read_selection(
    documents: list[Reader], importance: Reader, layers: int | None = None
) -> Selection:
    """What was left out, from the plan document (first) or from what the others say of it."""
    plan = documents[0]
    dropped = next((found for item in documents if (found := dropped_in(item))), None)
    rules = {item.rule: item for item in read_importance(plan.child("importance"))}
    rules.update({item.rule: item for item in read_importance(importance)})
    counts = [count for item in documents if (count := _layer_count(item))]
    scored = max((item.layers for item in rules.values()), default=0)
    layers = layers or next(iter(counts), None) or scored or None
    attention, ffn, fill = dropped or ((), (), Fill())
    outside = [layer for layer in (*attention, *ffn) if layers and layer >= layers]
    if outside:
        plan.notes.append(
            f"The plan names layer {max(outside)}, but the model has {layers} layers; "
            "such layers were left out of this report."
        )
    inside = {
        "attention": tuple(layer for layer in attention if layer not in outside),
        "ffn": tuple(layer for layer in ffn if layer not in outside),
    }
    steps = _read_path(plan.child("path"))
    sections = plan.child("plan").value
    sections = sections if isinstance(sections, Mapping) else {}
    sections = {**sections, **_mapping(sections.get("sections"))}
    return Selection(
        attention=inside["attention"],
        ffn=inside["ffn"],
        fill=fill,
        layers=layers,
        rule=plan.text("rule"),
        importance=tuple(rules.values()),
        path=tuple(step for step in steps if not layers or step.layer < layers),
        calibration=_read_calibration(plan.child("calibration")),
        calibration_loss=plan.number("calibration_loss"),
        seconds=plan.number("seconds"),
        read_no_text=bool(plan) and plan.value.get("calibration", ...) is None,
        repair=_read_repair(documents),
        bound=plan.child("byte_bound").number("decode"),
        workload=plan.text("workload"),
        other_sections=tuple(name for name in _SECTIONS if sections.get(name)),
        known=dropped is not None,
    )


def _read_repair(documents: list[Reader]) -> str | None:
    for document in documents:
        plan = document.child("plan")
        places = [document]
        if isinstance(plan.value, Mapping) and isinstance(plan.value.get("drop"), Mapping):
            places.append(plan.child("drop"))
        for place in places:
            if (text := place.text("repair")) is not None:
                return None if text in ("none", "0") else text
    return None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _read_task(name: str, node: Reader) -> Task:
    metric = node.text("metric")
    dense, planned = node.number("dense"), node.number("planned")
    difference = node.estimate("difference", "interval")
    if difference.value is None and dense is not None and planned is not None:
        difference = Estimate(planned - dense, difference.low, difference.high)
    in_range = all(value is None or 0 <= value <= 1 for value in (dense, planned))
    return Task(
        name=name,
        metric=metric,
        dense=dense,
        planned=planned,
        difference=difference,
        items=node.number("items"),
        is_share=in_range and not _NOT_A_SHARE.search(metric or ""),
    )


def _ends(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high


def _exponential(loss: float | None) -> float | None:
    """Relative change of perplexity for a change of loss in nats."""
    if loss is None:
        return None
    return math.expm1(loss) if loss < 700 else math.inf


def _read_fidelity(node: Reader) -> Fidelity | None:
    if not node:
        return None
    others: list[tuple[str, Estimate]] = []
    for name, child in node.items():
        if name in ("perplexity_dense", "perplexity_planned") or name.endswith("interval"):
            continue
        if isinstance(child.value, int | float) and not isinstance(child.value, bool):
            interval = _INTERVALS.get(name, f"{name}_interval")
            others.append((name, node.estimate(name, interval)))
    # Perplexity is the exponential of the loss, so the loss's paired interval gives its own.
    paired = node.estimate("loss_difference", "loss_interval")
    return Fidelity(
        perplexity_change=Estimate(*(_exponential(end) for end in _ends(paired))),
        perplexity_dense=node.number("perplexity_dense"),
        perplexity_planned=node.number("perplexity_planned"),
        others=tuple(others),
    )


def read_quality(name: str, node: Reader) -> Quality:
    """One `eval` document."""
    mean = node.child("mean")
    return Quality(
        name=name,
        tasks=tuple(_read_task(task, child) for task, child in node.child("tasks").items()),
        mean=_read_task("mean", mean) if mean else None,
        fidelity=_read_fidelity(node.child("fidelity")),
        held_out=node.text("held_out") or node.text("data"),
        simulated=node.child("simulated").value is True,
    )


def split_evaluations(node: Reader) -> dict[str, Reader]:
    """{name: eval document}, the plan's own first; empty if there is none.

    `node` is one `eval` document, or a mapping from names to `eval` documents in which `plan` (or
    else the first) is the plan's own; comparisons may also stand under its `comparisons`.
    """
    if not node.is_mapping() or not node:
        return {}
    if any(key in node.value for key in _EVAL_KEYS):
        own, named = "plan", {"plan": node}
    else:
        named = {name: child for name, child in node.items() if child.value is not None}
        own = "plan" if "plan" in named else next(iter(named), None)
    if own is None:
        return {}
    first = named.pop(own)
    for name, child in first.child("comparisons").items():
        named.setdefault(name, child)
    return {own: first, **named}


def read_qualities(evaluations: Mapping[str, Reader]) -> tuple[Quality, ...]:
    """Every evaluation that holds something; empty if the plan's own does not."""
    found = [read_quality(name, node) for name, node in evaluations.items()]
    full = [item for item in found if item.tasks or item.mean or item.fidelity]
    return tuple(full) if full and full[0] is found[0] else ()


def _read_side(node: Reader) -> Side:
    return Side(
        prefill_s=node.number("prefill_s"),
        tpot_s=node.number("tpot_s"),
        tokens_per_s=node.number("tokens_per_s"),
        weight_bytes=node.number("weight_bytes"),
        kv_bytes_per_token=node.number("kv_bytes_per_token"),
        peak_bytes=node.number("peak_bytes"),
        roofline_share=node.number("roofline_share"),
    )


def _speedup(node: Reader, name: str, dense: float | None, planned: float | None) -> Estimate:
    estimate = node.estimate(name, f"{name}_interval")
    if estimate.value is None and dense and planned:
        return Estimate(dense / planned, estimate.low, estimate.high)
    return estimate


def _read_predicted(node: Reader) -> Predicted:
    speedup = node.child("speedup")
    return Predicted(
        dense=_read_side(node.child("dense")),
        planned=_read_side(node.child("planned")),
        prefill=speedup.number("prefill"),
        decode=speedup.number("decode"),
    )


def _read_collected(node: Reader) -> Collected:
    return Collected(share=node.number("share"), gain=node.number("gain"))


def _read_decoders(node: Reader) -> Decoders:
    sides = (node.child(name) for name in ("dense", "planned"))
    dense, planned = (Decoder(side.text("path"), side.text("reason")) for side in sides)
    return Decoders(dense, planned, threads=node.number("threads"))


def read_speed(node: Reader) -> Speed | None:
    """One `bench` document; None if there is none."""
    if not node.is_mapping() or not node:
        return None
    dense, planned = _read_side(node.child("dense")), _read_side(node.child("planned"))
    speedup, bound = node.child("speedup"), node.child("byte_bound")
    prefill_bound = node.child("compute_bound").number("prefill")
    collected = node.child("collected")
    return Speed(
        workload=node.text("workload"),
        dense=dense,
        planned=planned,
        prefill=_speedup(speedup, "prefill", dense.prefill_s, planned.prefill_s),
        decode=_speedup(speedup, "decode", dense.tpot_s, planned.tpot_s),
        prefill_bound=bound.number("prefill") if prefill_bound is None else prefill_bound,
        decode_bound=bound.number("decode"),
        predicted=_read_predicted(node.child("predicted")),
        prefill_collected=_read_collected(collected.child("prefill")),
        decode_collected=_read_collected(collected.child("decode")),
        decoders=_read_decoders(node.child("engine")),
    )


def read_samples(node: Reader) -> tuple[Sample, ...]:
    """`[{prompt, dense, planned}]`; missing texts read as empty."""
    return tuple(
        Sample(
            prompt=item.text("prompt") or "",
            dense=item.text("dense") or "",
            planned=item.text("planned") or "",
        )
        for item in node.elements()
        if item.is_mapping()
    )
