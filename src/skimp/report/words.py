"""Sentences of the report, as pure functions of what was measured.

The verdicts follow one rule: a plan is called faster only if the whole 95% interval of its measured
speedup lies above 1. Otherwise it is called not faster, with the reason in bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from skimp.errors import WorkloadError
from skimp.report import numbers
from skimp.report.facts import (
    KIND_LABEL,
    KINDS,
    Decoder,
    Estimate,
    Fidelity,
    Fill,
    Quality,
    Selection,
    Side,
    Speed,
)
from skimp.workload import Workload

State = Literal["faster", "not faster", "unproven", "not measured"]
# Below this, what the bytes allow is smaller than what timing on a shared machine can show.
_SMALL_BOUND = 1.05
# A bound that allows no more than this allows no gain to take shares of.
NO_BOUND = 1.005


@dataclass(frozen=True)
class Verdict:
    """A judgement in one word, and the sentences that support it."""

    state: State
    headline: str
    reason: str = ""


def between(estimate: Estimate, show: str = "times") -> str:
    """`1.10–1.14` for speedups, `−1.9 to +0.3` for points; empty without an interval."""
    if not estimate.has_interval:
        return ""
    if show == "percent":
        low, high = numbers.percent_change(estimate.low), numbers.percent_change(estimate.high)
        return f"{low} to {high}"
    if show == "times":
        ends = (estimate.low or 0.0, estimate.high or 0.0)
        # An end such as 1.002 must not round to the very 1 that it clears.
        digits = 3 if any(0 < abs(end - 1) < 0.005 for end in ends) else 2
        return "–".join(f"{end:.{digits}f}" for end in ends)
    form = numbers.points if show == "points" else numbers.plus
    return f"{form(estimate.low)} to {form(estimate.high)}"


def state_of(speedup: Estimate) -> State:
    """Faster only if the interval clears 1; without an interval, above 1 is merely unproven."""
    if speedup.value is None:
        return "not measured"
    if not speedup.has_interval:
        return "unproven" if speedup.value > 1 else "not faster"
    return "faster" if (speedup.low or 0) > 1 else "not faster"


def step_parts(side: Side, workload: str | None) -> tuple[float, float] | None:
    """(weight bytes, KV bytes) of a mean decode step, the cache of all sequences counted."""
    if side.weight_bytes is None:
        return None
    try:
        work = Workload.parse(workload or "")
    except WorkloadError:
        return side.weight_bytes, 0.0
    return side.weight_bytes, (side.kv_bytes_per_token or 0.0) * work.mean_context * work.batch


def decode_bound(speed: Speed) -> float | None:
    """The byte bound as it was recorded, else the ratio of the bytes recorded."""
    if speed.decode_bound is not None:
        return speed.decode_bound
    dense = step_parts(speed.dense, speed.workload)
    planned = step_parts(speed.planned, speed.workload)
    return sum(dense) / sum(planned) if dense and planned and sum(planned) > 0 else None


def decode_verdict(speed: Speed | None, computed: str = "") -> Verdict:
    """Is decode faster, and what do the bytes say about it?

    `computed` is what to say of the bytes where nothing was timed.
    """
    if speed is None or speed.decode.value is None:
        return Verdict("not measured", "Decode speed was not measured.", computed)
    state, value = state_of(speed.decode), numbers.times(speed.decode.value)
    spread = between(speed.decode)
    measured = f"{value} (95% interval {spread})" if spread else f"{value}, without an interval"
    at = f" at {speed.workload}" if speed.workload else ""
    if state == "faster":
        headline = f"Faster: decode runs at {measured} the dense speed{at}."
        return Verdict(state, headline, _against_bound(speed))
    if state == "unproven":
        headline = f"Not shown to be faster: decode was timed at {measured}{at}."
        return Verdict(state, headline, _against_bound(speed))
    slower = speed.decode.has_interval and (speed.decode.high or 0) < 1
    word = "Not faster, but slower" if slower else "Not faster"
    return Verdict(state, f"{word}: decode runs at {measured} the dense speed{at}.", _why(speed))


def prefill_sentence(speed: Speed | None) -> str | None:
    """Is prefill faster, in one sentence; None if it was not timed."""
    if speed is None or speed.prefill.value is None:
        return None
    state, spread = state_of(speed.prefill), between(speed.prefill)
    word = {"unproven": "not shown to be faster"}.get(state, state)
    interval = f" (95% interval {spread})" if spread else ", without an interval"
    text = f"Prefill is {word}: {numbers.times(speed.prefill.value)}{interval}"
    dense, planned = speed.dense.weight_bytes, speed.planned.weight_bytes
    saved = _saved("weights", dense, planned)
    return f"{text}; {saved}." if state == "not faster" and saved else f"{text}."


def bound_sentence(selection: Selection) -> str:
    """The byte bound that was computed with the plan; empty if there is none."""
    if selection.bound is None or not math.isfinite(selection.bound):
        return ""
    at = f" at {selection.workload}" if selection.workload else ""
    return f"The bytes it reads would allow at most {numbers.times(selection.bound)}{at}."


def _against_bound(speed: Speed) -> str:
    bound, value = decode_bound(speed), speed.decode.value
    if bound is None or value is None or not math.isfinite(bound):
        return "No bytes were recorded, so there is no bound to hold this against."
    if value > bound * 1.02:
        return (
            f"That is more than the {numbers.times(bound)} that the bytes saved explain; the rest "
            "comes from elsewhere (arithmetic, launches, caches of the machine)."
        )
    if bound <= NO_BOUND:
        return "The bytes read did not shrink, so bytes do not explain it."
    part = f"{max(0.0, (value - 1) / (bound - 1)):.0%}"
    return (
        f"If time were proportional to bytes read it would be {numbers.times(bound)}; "
        f"{part} of that gain was collected, and the speedup is {value / bound:.0%} of the bound."
    )


def decoded_sentence(speed: Speed | None) -> str | None:
    """What decoded each side, and why where it was not the native program; None if unrecorded."""
    if speed is None:
        return None
    sides = (("dense", speed.decoders.dense), ("planned", speed.decoders.planned))
    how = {name: _decoded(side, speed.decoders.threads) for name, side in sides if side.path}
    if not how:
        return None
    if len(how) == 2 and len(set(how.values())) == 1:
        return f"Both sides were decoded {how['dense']}."
    text = "; ".join(f"{name} was decoded {by}" for name, by in how.items())
    return f"{text[0].upper()}{text[1:]}."


def _decoded(side: Decoder, threads: float | None) -> str:
    if side.path != "native":
        return f"by {side.path} ({side.reason})" if side.reason else f"by {side.path}"
    if threads is None:
        return "by the native program"
    return f"by the native program, {numbers.count(threads)} thread{'' if threads == 1 else 's'}"


def _saved(name: str, dense: float | None, planned: float | None) -> str | None:
    if dense is None or planned is None:
        return None
    change = numbers.change(planned, dense)
    if change == numbers.GAP:
        return None
    if change == "±0%":
        return f"{name} stay at {numbers.size(dense)}"
    return f"{name} go from {numbers.size(dense)} to {numbers.size(planned)} ({change})"


def _why(speed: Speed) -> str:
    """The reason in bytes why a plan is not faster."""
    dense, planned, bound = speed.dense, speed.planned, decode_bound(speed)
    pieces = [
        _saved("weights", dense.weight_bytes, planned.weight_bytes),
        _saved("KV bytes per token", dense.kv_bytes_per_token, planned.kv_bytes_per_token),
    ]
    facts = " and ".join(piece for piece in pieces if piece)
    if bound is None or not math.isfinite(bound):
        return "The reason cannot be given in bytes, since no bytes were recorded."
    opening = f"{facts[0].upper()}{facts[1:]}. " if facts else ""
    ceiling = f"bytes allow at most {numbers.times(bound)}"
    if bound <= NO_BOUND:
        return f"{opening}A decode step reads as many bytes as before, so {ceiling}."
    if bound < _SMALL_BOUND:
        return f"{opening}So {ceiling}, too little to show above the spread of the clock."
    if speed.decode.has_interval and (speed.decode.high or 0) >= bound:
        return (
            f"{opening}So {ceiling}, and the interval holds that as well as no gain at all: the "
            "clock was too unsteady to tell, and more rounds would narrow it."
        )
    shares = [
        f"{name} {numbers.share(side.roofline_share)}"
        for name, side in (("dense", dense), ("planned", planned))
        if side.roofline_share is not None
    ]
    used = f" (share of roofline reached: {', '.join(shares)})" if shares else ""
    return (
        f"{opening}So {ceiling}, which was not collected: something other than bytes read sets "
        f"the pace here{used}."
    )


def fill_words(fill: Fill) -> str:
    """What stands in the place of one dropped sublayer."""
    if fill.kind == "zero":
        return "nothing"
    if fill.kind == "mean":
        return "its mean output"
    if fill.kind == "linear":
        return f"a rank-{fill.rank} linear map" if fill.rank else "a linear map"
    return fill.kind


def _fills(fill: Fill, many: bool) -> str:
    if fill.kind == "zero":
        return "with nothing in their place" if many else "with nothing in its place"
    if fill.kind == "mean":
        return f"replaced by {'their' if many else 'its'} mean output"
    if fill.kind == "linear":
        rank = f"rank-{fill.rank} " if fill.rank else ""
        return f"replaced by {rank}linear maps" if many else f"replaced by a {rank}linear map"
    return f"replaced by {fill.kind}"


def left_out(selection: Selection) -> str:
    """What the plan leaves out, in words: `10 of 30 attention sublayers, replaced by ...`."""
    if not selection.known:
        return "What was left out is not recorded"
    of = f" of {selection.layers}" if selection.layers else ""
    attention, ffn = selection.attention, selection.ffn
    other = ""
    if selection.repair:
        rank = "full rank" if selection.repair == "full" else f"rank {selection.repair}"
        other += f"; kept output projections repaired ({rank})"
    if selection.other_sections:
        other += f"; the plan also has a section on {_listed(selection.other_sections)}"
    if not attention and not ffn:
        return f"No sublayer left out{other}"
    if attention == ffn:
        number = len(attention)
        noun = "whole layer" if number == 1 and not of else "whole layers"
        return f"{number}{of} {noun}, {_fills(selection.fill, number > 1)}{other}"
    counted = [
        (len(layers), KIND_LABEL[kind]) for kind in KINDS if (layers := selection.dropped(kind))
    ]
    total = sum(number for number, _ in counted)
    noun = "sublayer" if total == 1 and not of else "sublayers"
    named = " and ".join(f"{number}{of} {label}" for number, label in counted)
    return f"{named} {noun}, {_fills(selection.fill, total > 1)}{other}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def quality_sentence(quality: Quality | None) -> str:
    """What the mean accuracy did, and what its interval cannot exclude."""
    mean = quality.mean if quality else None
    if mean is None or mean.difference.value is None:
        return "Mean accuracy was not measured."
    difference = mean.difference
    amount = _unsigned(difference.value)
    tasks = len(quality.tasks) if quality else 0
    over = f" over {tasks} tasks" if tasks > 1 else ""
    if not difference.has_interval:
        verb = "fell" if (difference.value or 0) < 0 else "rose"
        return f"Mean accuracy{over} {verb} by {amount}, measured without an interval."
    spread = f"(95% interval {between(difference, 'points')})"
    low, high = difference.low or 0.0, difference.high or 0.0
    if high < 0:
        return f"Mean accuracy{over} fell by {amount} {spread}: the loss is real."
    if low > 0:
        return f"Mean accuracy{over} rose by {amount} {spread}."
    if low == high:
        return f"Mean accuracy{over} did not change on any item."
    return (
        f"Mean accuracy{over} changed by {numbers.points(difference.value)} points {spread}: "
        f"no loss was shown, and a loss of {_unsigned(low)} cannot be excluded."
    )


def _unsigned(value: float | None) -> str:
    return f"{numbers.points(abs(value or 0.0)).lstrip('+')} points"


def perplexity_sentence(fidelity: Fidelity | None) -> str | None:
    """Dense to planned perplexity with its relative change."""
    if fidelity is None or fidelity.perplexity_planned is None:
        return None
    dense, planned = fidelity.perplexity_dense, fidelity.perplexity_planned
    change = numbers.change(planned, dense)
    spread = between(fidelity.perplexity_change, "percent")
    inside = change + (f", 95% interval {spread}" if spread else "")
    tail = f" ({inside})" if change != numbers.GAP else ""
    return f"Perplexity {numbers.significant(dense)} → {numbers.significant(planned)}{tail}."
