"""Plots of differences and speed: what moved, by how much, and how sure that is."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from skimp.report import numbers, svg
from skimp.report.facts import Estimate, Quality, Speed, Task
from skimp.report.scale import Axis, axis
from skimp.report.words import between, decode_bound, step_parts

_LANE = 13.0
_NAME = 16


def _ends(estimate: Estimate) -> list[float | None]:
    return [estimate.value, *((estimate.low, estimate.high) if estimate.has_interval else ())]


def _whisker(
    estimate: Estimate, scale: Axis, y: float, class_: str, cap: float = 4
) -> list[Markup]:
    """The interval as a line with small ends; nothing without one."""
    if not estimate.has_interval or estimate.low is None or estimate.high is None:
        return []
    low, high = scale.at(estimate.low), scale.at(estimate.high)
    parts = [svg.line(low, y, high, y, f"whisker {class_}")]
    for end, value in ((low, estimate.low), (high, estimate.high)):
        if not scale.cuts(value):
            parts.append(svg.line(end, y - cap, end, y + cap, f"whisker {class_}"))
    return parts


def shorten(text: str, most: int = _NAME) -> str:
    """At most `most` characters; the full text belongs in the hover title."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _signed_tick(value: float, step: float) -> str:
    text = numbers.tick(100 * value, 100 * step)
    return f"+{text}" if value > 0 else text


@dataclass(frozen=True)
class Row:
    """One line of the plot of differences: a task (or the mean), and one estimate per plan."""

    name: str
    estimates: tuple[tuple[str, Estimate], ...]
    strong: bool = False


def difference_rows(qualities: tuple[Quality, ...]) -> list[Row]:
    """Tasks whose score is a share, in the order of the plan's own evaluation, the mean last."""
    if not qualities:
        return []
    own = qualities[0]
    rows: list[Row] = []
    for task in own.tasks:
        if task.is_share:
            rows.append(Row(task.name, _lanes(qualities, task.name)))
    if own.mean and own.mean.is_share and own.mean.difference.value is not None:
        found = ((item.name, item.mean) for item in qualities)
        lanes = tuple((name, mean.difference) for name, mean in found if mean)
        rows.append(Row("mean", lanes, strong=True))
    return [row for row in rows if any(item.value is not None for _, item in row.estimates)]


def _lanes(qualities: tuple[Quality, ...], name: str) -> tuple[tuple[str, Estimate], ...]:
    found: list[tuple[str, Task | None]] = [(item.name, item.task(name)) for item in qualities]
    return tuple((rule, task.difference) for rule, task in found if task and task.is_share)


def difference_plot(qualities: tuple[Quality, ...]) -> Markup | None:
    """Dots and 95% intervals of planned minus dense, in points; None without differences."""
    rows = difference_rows(qualities)
    if not rows:
        return None
    scale = axis(end for row in rows for _, item in row.estimates for end in _ends(item))
    lanes = len(qualities)
    height = max(26.0, _LANE * lanes + 12)
    bottom = 8 + height * len(rows)
    names = {item.name: index for index, item in enumerate(qualities)}
    drawn: list[Markup] = [
        svg.line(scale.at(t), 4, scale.at(t), bottom, "zero-line" if t == 0 else "grid")
        for t in scale.ticks
    ]
    for index, row in enumerate(rows):
        top = 8 + height * index
        if row.strong:
            drawn.append(svg.line(0, top, 1, top, "rule"))
        style = "row-name strong" if row.strong else "row-name"
        name = svg.element("tspan", shorten(row.name))
        drawn.append(
            svg.element(
                "text", svg.tip(row.name), name, x="0", y=top + height / 2 + 4, dx=-10, class_=style
            )
        )
        for rule, estimate in row.estimates:
            lane = names[rule]
            y = top + height / 2 + (lane - (lanes - 1) / 2) * _LANE
            drawn.append(_difference_mark(row.name, rule, estimate, scale, y, lane))
    for t in scale.ticks:
        drawn.append(svg.label(scale.at(t), bottom + 16, _signed_tick(t, scale.step), "tick mid"))
    title = "Difference in points, planned minus dense, with 95% intervals"
    return svg.plot("differences", title, bottom + 24, drawn, "gutter-wide")


def _difference_mark(
    task: str, rule: str, estimate: Estimate, scale: Axis, y: float, lane: int
) -> Markup:
    if estimate.value is None or not math.isfinite(estimate.value):
        return Markup("")
    spread = between(estimate, "points") or "no interval"
    exact = f"{task}, {rule}: {numbers.points(estimate.value)} points ({spread})"
    look = f"series-{min(lane, 3)}"
    parts = [svg.tip(exact), *_whisker(estimate, scale, y, look)]
    parts.append(svg.mark(scale.at(estimate.value), y, lane, f"dot {look}"))
    return svg.element("g", *parts, class_="mark")


@dataclass(frozen=True)
class Ratio:
    """One quantity of the planned model as a fraction of the dense one."""

    name: str
    fraction: float
    text: str


def ratios(speed: Speed) -> list[Ratio]:
    """Times and bytes, planned as a fraction of dense, where both were measured."""
    pairs = (
        ("prefill time", "prefill_s", numbers.seconds),
        ("time per output token", "tpot_s", numbers.seconds),
        ("weights", "weight_bytes", numbers.size),
        ("KV cache per token", "kv_bytes_per_token", numbers.size),
        ("peak memory", "peak_bytes", numbers.size),
    )
    found: list[Ratio] = []
    for name, field, show in pairs:
        dense, planned = getattr(speed.dense, field), getattr(speed.planned, field)
        if not dense or planned is None or not math.isfinite(dense) or not math.isfinite(planned):
            continue
        text = f"{name}: {show(planned)} planned, {show(dense)} dense"
        found.append(Ratio(name, planned / dense, text))
    return found


def ratio_plot(speed: Speed) -> Markup | None:
    """Bars of planned as a share of dense, with dense as the line at 100%."""
    rows = ratios(speed)
    if not rows:
        return None
    scale = Axis(0.0, max(1.0, *(row.fraction for row in rows)), ())
    height, drawn = 40.0, []
    bottom = height * len(rows)
    for index, row in enumerate(rows):
        top = height * index
        change = numbers.change(row.fraction, 1.0)
        worse = " worse" if row.fraction > 1.0005 else ""
        drawn.append(svg.label(0, top + 13, row.name, "name"))
        drawn.append(svg.label(1, top + 13, change, f"amount{worse}"))
        bars = [
            svg.box(0, top + 19, scale.at(1), 12, "track"),
            svg.box(0, top + 19, scale.at(row.fraction), 12, f"ratio{worse}"),
            svg.line(scale.at(1), top + 16, scale.at(1), top + 34, "dense-line"),
        ]
        drawn.append(svg.element("g", svg.tip(row.text), *bars, class_="mark"))
    drawn.append(svg.label(scale.at(1), bottom + 12, "dense = 100%", "tick end"))
    return svg.plot("ratios", "Planned as a share of dense: times and bytes", bottom + 18, drawn)


def bytes_plot(speed: Speed) -> Markup | None:
    """What a mean decode step holds, dense above planned: weights, then KV cache, to one scale."""
    parts = [step_parts(side, speed.workload) for side in (speed.dense, speed.planned)]
    rows = [part for part in parts if part and all(map(math.isfinite, part)) and sum(part) > 0]
    if len(rows) < 2:
        return None
    most = max(map(sum, rows))
    drawn: list[Markup] = []
    for index, (name, (weights, cache)) in enumerate(zip(("dense", "planned"), rows, strict=True)):
        top = 40.0 * index
        exact = f"{name}: weights {numbers.size(weights)}, KV cache {numbers.size(cache)}"
        drawn.append(svg.label(0, top + 13, name, "name"))
        drawn.append(svg.label(1, top + 13, numbers.size(weights + cache), "amount"))
        bars = [
            svg.box(0, top + 19, weights / most, 12, "ratio"),
            svg.box(weights / most, top + 19, cache / most, 12, "ratio cache"),
        ]
        drawn.append(svg.element("g", svg.tip(exact), *bars, class_="mark"))
    title = "Bytes of a mean decode step, dense and planned: weights and KV cache"
    return svg.plot("bytes", title, 76, drawn)


def speed_gauge(
    name: str, speedup: Estimate, bound: float | None, bound_name: str = "byte bound"
) -> Markup | None:
    """One speedup on a line: dense at 1, the measured interval, and the bound as a tick."""
    if speedup.value is None or not math.isfinite(speedup.value):
        return None
    bound = bound if bound is not None and math.isfinite(bound) else None
    ends = [value for value in (*_ends(speedup), bound, 1.0) if value is not None]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or 0.05
    scale = Axis(low - margin, high + margin, ())
    drawn = [
        svg.line(0, 12, 1, 12, "grid"),
        svg.line(scale.at(1), 4, scale.at(1), 20, "dense-line"),
    ]
    if bound is not None:
        drawn.append(svg.line(scale.at(bound), 4, scale.at(bound), 20, "bound-line"))
    drawn += _whisker(speedup, scale, 12, "series-0 thick", cap=0)
    drawn.append(svg.mark(scale.at(speedup.value), 12, 0, "dot series-0"))
    title = f"Speedup {numbers.times(speedup.value)}"
    title += f", 95% interval {between(speedup)}" if speedup.has_interval else ""
    title += f", {bound_name} {numbers.times(bound)}" if bound is not None else ""
    return svg.plot(name, title, 24, drawn, "gauge")


def decode_gauge(speed: Speed) -> Markup | None:
    """The gauge of the decode speedup."""
    return speed_gauge("gauge-decode", speed.decode, decode_bound(speed))


def difference_gauge(name: str, difference: Estimate) -> Markup | None:
    """One difference on a line: its interval beside no change at all."""
    if difference.value is None or not math.isfinite(difference.value):
        return None
    reach = max(abs(value or 0.0) for value in _ends(difference)) * 1.15 or 0.01
    scale = Axis(-reach, reach, ())
    drawn = [
        svg.line(0, 12, 1, 12, "grid"),
        svg.line(scale.at(0), 4, scale.at(0), 20, "dense-line"),
        *_whisker(difference, scale, 12, "series-0 thick", cap=0),
        svg.mark(scale.at(difference.value), 12, 0, "dot series-0"),
    ]
    spread = between(difference, "points")
    title = f"Difference {numbers.points(difference.value)} points"
    title += f", 95% interval {spread}" if spread else ""
    return svg.plot(name, title, 24, drawn, "gauge")
