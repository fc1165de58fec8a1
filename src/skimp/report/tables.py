"""The report's figures and tables as rows of text, ready to be laid out."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from skimp.report import charts, numbers, words
from skimp.report.facts import (
    KIND_LABEL,
    Collected,
    Estimate,
    Fidelity,
    Importance,
    Part,
    Quality,
    Selection,
    Side,
    Speed,
    Task,
)


@dataclass(frozen=True)
class Tile:
    """One key figure: its name, value, spread, what to hold it against, and a small picture."""

    name: str
    value: str
    detail: str = ""
    beside: str = ""
    tone: str = ""
    picture: Markup | None = None


@dataclass(frozen=True)
class Difference:
    """One plan's difference from dense on one task, and its interval."""

    rule: str
    value: str
    spread: str
    tone: str


@dataclass(frozen=True)
class TaskRow:
    """One line of the table of tasks."""

    name: str
    metric: str
    items: str
    dense: str
    planned: str
    differences: tuple[Difference, ...]
    strong: bool = False


@dataclass(frozen=True)
class SpeedRow:
    """One line of the table of speed; `predicted` are the same figures as they were foretold."""

    name: str
    dense: str
    planned: str
    change: str
    predicted: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class ImportanceTable:
    """Scores by layer: one column per rule and kind."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SpeedupRow:
    """One phase: speedup, interval, prediction, bound, what was collected of it, and a verdict.

    `share` is the speedup as a share of the bound, `gain` the share of the gain it allows.
    """

    name: str
    speedup: str
    interval: str
    predicted: str
    bound: str
    share: str
    gain: str
    state: str
    tone: str


def _interval(estimate: Estimate, show: str = "times") -> str:
    spread = words.between(estimate, show)
    return f"95% interval {spread}" if spread else "no interval measured"


def tone(estimate: Estimate) -> str:
    """Coloured only where the interval lies on one side of zero."""
    if not estimate.has_interval:
        return ""
    return "bad" if (estimate.high or 0) < 0 else "good" if (estimate.low or 0) > 0 else ""


def tiles(speed: Speed | None, quality: Quality | None) -> list[Tile]:
    """The key figures of the headline; what was not measured stays as a tile that says so."""
    found = [_decode_tile(speed), _prefill_tile(speed), _memory_tile(speed)]
    return [*found, _accuracy_tile(quality), _perplexity_tile(quality)]


def _decode_tile(speed: Speed | None) -> Tile:
    if speed is None or speed.decode.value is None:
        return Tile("Decode speed", numbers.GAP, "not measured", tone="gap")
    bound = words.decode_bound(speed)
    return Tile(
        "Decode speed",
        numbers.times(speed.decode.value),
        _interval(speed.decode),
        _beside(
            f"byte bound {numbers.times(bound)}"
            if bound is not None
            else "byte bound not recorded",
            speed.predicted.decode,
        ),
        _speed_tone(speed.decode),
        charts.decode_gauge(speed),
    )


def _beside(text: str, predicted: float | None) -> str:
    """What a speedup is held against, with what was foretold after it."""
    foretold = f"predicted {numbers.times(predicted)}" if predicted is not None else ""
    return "; ".join(filter(None, [text, foretold]))


def _speed_tone(speedup: Estimate) -> str:
    return {"faster": "good", "not faster": "bad"}.get(words.state_of(speedup), "")


def _prefill_tile(speed: Speed | None) -> Tile:
    if speed is None or speed.prefill.value is None:
        return Tile("Prefill speed", numbers.GAP, "not measured", tone="gap")
    state = words.state_of(speed.prefill)
    beside = {"not faster": "not faster", "unproven": "not shown to be faster"}.get(state, "")
    if speed.prefill_bound is not None:
        beside = "; ".join(filter(None, [beside, f"bound {numbers.times(speed.prefill_bound)}"]))
    return Tile(
        "Prefill speed",
        numbers.times(speed.prefill.value),
        _interval(speed.prefill),
        _beside(beside, speed.predicted.prefill),
        _speed_tone(speed.prefill),
        charts.speed_gauge("gauge-prefill", speed.prefill, speed.prefill_bound, "bound"),
    )


def _memory_tile(speed: Speed | None) -> Tile:
    dense, planned = (speed.dense, speed.planned) if speed else (None, None)
    if dense is None or planned is None or dense.weight_bytes is None:
        return Tile("Weights", numbers.GAP, "not measured", tone="gap")
    sizes = f"{numbers.size(dense.weight_bytes)} → {numbers.size(planned.weight_bytes)}"
    kv = numbers.change(planned.kv_bytes_per_token, dense.kv_bytes_per_token)
    sides = (dense.kv_bytes_per_token, planned.kv_bytes_per_token)
    per_token = " → ".join(numbers.size(value) for value in sides)
    beside = f"KV per token {kv} ({per_token})" if kv != numbers.GAP else "KV not measured"
    value = numbers.change(planned.weight_bytes, dense.weight_bytes)
    return Tile("Weights", value, sizes, beside)


def _accuracy_tile(quality: Quality | None) -> Tile:
    mean = quality.mean if quality else None
    if mean is None or mean.difference.value is None:
        return Tile("Mean accuracy", numbers.GAP, "not measured", tone="gap")
    if not mean.is_share:
        spread = _interval(mean.difference, "plain")
        return Tile("Mean score", numbers.plus(mean.difference.value), spread)
    return Tile(
        "Mean accuracy",
        f"{numbers.points(mean.difference.value)} pt",
        _interval(mean.difference, "points"),
        f"{numbers.share(mean.dense)} → {numbers.share(mean.planned)}",
        tone(mean.difference),
        charts.difference_gauge("gauge-accuracy", mean.difference),
    )


def _perplexity_tile(quality: Quality | None) -> Tile:
    fidelity = quality.fidelity if quality else None
    if fidelity is None or fidelity.perplexity_planned is None:
        return Tile("Perplexity", numbers.GAP, "not measured", tone="gap")
    dense, planned = fidelity.perplexity_dense, fidelity.perplexity_planned
    value = numbers.change(planned, dense)
    values = f"{numbers.significant(dense)} → {numbers.significant(planned)}"
    spread = words.between(fidelity.perplexity_change, "percent")
    beside = f"95% interval {spread}" if spread else "lower is better"
    if value == numbers.GAP:
        return Tile("Perplexity", numbers.significant(planned), values, beside)
    return Tile("Perplexity", value, values, beside)


def _difference(rule: str, task: Task | None) -> Difference:
    if task is None or task.difference.value is None:
        return Difference(rule, numbers.GAP, "", "gap")
    show = "points" if task.is_share else "plain"
    value = (numbers.points if task.is_share else numbers.plus)(task.difference.value)
    colour = tone(task.difference) if task.is_share else ""
    return Difference(rule, value, words.between(task.difference, show), colour)


def _row(task: Task, differences: tuple[Difference, ...], name: str) -> TaskRow:
    show = numbers.share if task.is_share else numbers.significant
    return TaskRow(
        name=name,
        metric=task.metric if task.metric and task.metric != name else "",
        items=numbers.count(task.items),
        dense=show(task.dense),
        planned=show(task.planned),
        differences=differences,
        strong=name == "mean" and task.name == "mean",
    )


def task_table(qualities: tuple[Quality, ...]) -> list[TaskRow]:
    """One row per task of the plan's own evaluation, the mean last; empty if nothing was run."""
    if not qualities:
        return []
    own = qualities[0]
    rows = [
        _row(task, tuple(_difference(q.name, q.task(task.name)) for q in qualities), task.name)
        for task in own.tasks
    ]
    if own.mean:
        differences = tuple(_difference(quality.name, quality.mean) for quality in qualities)
        rows.append(_row(own.mean, differences, "mean"))
    return rows


_FIDELITY_NAMES = {
    "kl": "KL from dense, nats a token",
    "top1_agreement": "same most likely token",
    "loss_dense": "loss, dense, nats a token",
    "loss_planned": "loss, planned, nats a token",
    "loss_difference": "loss, planned − dense",
    "lost": "right in dense, wrong in planned",
    "gained": "wrong in dense, right in planned",
    "flips": "flips: right in one, wrong in the other",
    "tokens": "tokens predicted",
    "documents": "documents",
}


def fidelity_table(qualities: tuple[Quality, ...]) -> list[tuple[str, tuple[str, ...]]]:
    """(name, one value per plan) for perplexity and every other measure of fidelity."""
    kept = [quality.fidelity or Fidelity() for quality in qualities]
    rows: list[tuple[str, tuple[str, ...]]] = []
    if any(item.perplexity_planned is not None for item in kept):
        rows.append(("perplexity, dense", _perplexities([i.perplexity_dense for i in kept])))
        rows.append(("perplexity, planned", _perplexities([i.perplexity_planned for i in kept])))
    names = dict.fromkeys(name for item in kept for name, _ in item.others)
    for name in names:
        values = tuple(_fidelity_value(name, dict(item.others).get(name)) for item in kept)
        rows.append((_FIDELITY_NAMES.get(name, name.replace("_", " ")), values))
    return rows


def _perplexities(values: list[float | None]) -> tuple[str, ...]:
    return tuple(numbers.significant(value, 4) for value in values)


def _fidelity_value(name: str, estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return numbers.GAP
    shares = name.endswith(("agreement", "share", "rate", "flips", "lost", "gained"))
    show = numbers.share if shares and 0 <= estimate.value <= 1 else numbers.significant
    if name in ("tokens", "documents"):
        show = numbers.count
    elif name == "loss_difference":
        show = numbers.plus
    text = show(estimate.value)
    if estimate.has_interval:
        text += f" ({show(estimate.low)} to {show(estimate.high)})"
    return text


def importance_table(selection: Selection) -> ImportanceTable:
    """Every rule's score of every sublayer, one row a layer."""
    columns: list[tuple[Importance, Part]] = [
        (item, part) for item in selection.importance for part in item.scored
    ]
    names = [f"{item.rule}, {KIND_LABEL[part]}" for item, part in columns]
    rows = tuple(
        tuple(numbers.significant(item.of(part, layer)) for item, part in columns)
        for layer in range(selection.columns)
    )
    return ImportanceTable(tuple(names), rows)


def speed_table(speed: Speed | None) -> list[SpeedRow]:
    """Dense beside planned, one row a quantity; empty if neither side was timed by itself."""
    sides = (speed.dense, speed.planned) if speed else ()
    if speed is None or (set(sides) == {Side()} and speed.predicted.dense == Side()):
        return []
    pairs = (
        ("prefill", "prefill_s", numbers.seconds),
        ("time per output token", "tpot_s", numbers.seconds),
        ("tokens per second", "tokens_per_s", numbers.significant),
        ("weights", "weight_bytes", numbers.size),
        ("KV cache per token", "kv_bytes_per_token", numbers.size),
        ("peak memory", "peak_bytes", numbers.size),
    )
    rows: list[SpeedRow] = []
    for name, field, show in pairs:
        measured = _beside_each_other(speed.dense, speed.planned, field, show)
        foretold = speed.predicted
        predicted = _beside_each_other(foretold.dense, foretold.planned, field, show)
        known = predicted if set(predicted) != {numbers.GAP} else None
        rows.append(SpeedRow(name, *measured, known))
    dense, planned = speed.dense.roofline_share, speed.planned.roofline_share
    moved = None if dense is None or planned is None else planned - dense
    change = numbers.GAP if moved is None else f"{numbers.points(moved)} pt"
    rows.append(SpeedRow("share of roofline", numbers.share(dense), numbers.share(planned), change))
    return rows


def _beside_each_other(
    dense: Side, planned: Side, field: str, show: Callable[[float | None], str]
) -> tuple[str, str, str]:
    """One quantity of both sides, and its change."""
    one, other = getattr(dense, field), getattr(planned, field)
    return show(one), show(other), numbers.change(other, one)


def speedup_table(speed: Speed | None) -> list[SpeedupRow]:
    """One row a phase: speedup, interval, what was foretold, and what bytes or FLOPs would give."""
    if speed is None:
        return []
    bounds = speed.prefill_bound, words.decode_bound(speed)
    phases = (
        ("prefill", speed.prefill, speed.predicted.prefill, bounds[0], speed.prefill_collected),
        ("decode", speed.decode, speed.predicted.decode, bounds[1], speed.decode_collected),
    )
    return [
        SpeedupRow(
            name=name,
            speedup=numbers.times(estimate.value),
            interval=words.between(estimate) or numbers.GAP,
            predicted=numbers.times(predicted),
            bound=numbers.times(bound),
            share=numbers.share(collected.share),
            gain=numbers.share(collected.gain),
            state=words.state_of(estimate),
            tone=_speed_tone(estimate),
        )
        for name, estimate, predicted, bound, recorded in phases
        for collected in [_collected(estimate.value, bound, recorded)]
    ]


def _collected(speedup: float | None, bound: float | None, recorded: Collected) -> Collected:
    """As it was recorded, else worked out; a share of the gain that is below nothing is nothing."""
    if recorded.share is not None:
        share, gain = recorded.share, recorded.gain
    elif speedup is not None and bound is not None and math.isfinite(bound) and bound > 0:
        share = speedup / bound
        gain = (speedup - 1) / (bound - 1) if bound > words.NO_BOUND else None
    else:
        share = gain = None
    return Collected(share, None if gain is None else max(0.0, gain))
