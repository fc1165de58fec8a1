"""Plots of importance: every rule's score of every sublayer, and the greedy path."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from skimp.report import numbers, svg
from skimp.report.facts import KIND_LABEL, KINDS, Importance, Part, Selection, Step
from skimp.report.layer_map import importance_axis, index_labels
from skimp.report.scale import Axis, axis

_PANEL = 84.0
_HEAD = 20.0
_APART = 16.0
# (class of the style sheet, shape, letter) of each kind of step
_STEP_LOOKS = {
    "attention": ("series-0", 0, "A"),
    "ffn": ("series-1", 2, "F"),
    "layer": ("series-2", 1, "L"),
}
Height = Callable[[float], float]


@dataclass(frozen=True)
class Chart:
    """One picture with its heading and what it cannot show by itself."""

    name: str
    picture: Markup
    notes: tuple[str, ...] = ()


def importance_charts(selection: Selection) -> list[Chart]:
    """One chart per rule, the rule that chose the plan first."""
    ruler = selection.ruler
    rules = sorted(selection.importance, key=lambda item: item is not ruler)
    return [_chart(index, item, selection) for index, item in enumerate(rules)]


def _chart(index: int, importance: Importance, selection: Selection) -> Chart:
    scale = importance_axis(importance)
    columns = max(selection.columns, importance.layers)
    drawn: list[Markup] = []
    for place, part in enumerate(importance.scored):
        top = _HEAD + place * (_PANEL + _HEAD + _APART)
        drawn += _panel(part, importance, selection, scale, columns, top)
    bottom = len(importance.scored) * (_PANEL + _HEAD + _APART) - _APART
    drawn += index_labels(range(columns), columns, bottom + 16, most=16)
    title = f"Importance by {importance.rule}, one bar for each sublayer"
    picture = svg.plot(f"importance-{index}", title, bottom + 24, drawn, "gutter")
    return Chart(importance.rule, picture, tuple(_notes(importance, scale)))


def _panel(
    kind: Part, importance: Importance, selection: Selection, scale: Axis, columns: int, top: float
) -> list[Markup]:
    def height(value: float) -> float:
        return top + _PANEL * (1 - scale.at(value))

    drawn = [svg.label(0, top - 7, KIND_LABEL[kind], "panel-name")]
    for tick in scale.ticks:
        y = height(tick)
        drawn.append(svg.line(0, y, 1, y, "zero-line" if tick == 0 else "grid"))
        drawn.append(svg.label(0, y + 4, numbers.tick(tick, scale.step), "tick end", dx=-8))
    dropped = _gone(selection, kind)
    for layer in range(columns):
        look = "out" if layer in dropped else "kept"
        value = importance.of(kind, layer)
        drawn.append(_score(kind, layer, value, look, columns, height, scale))
    return drawn


def _gone(selection: Selection, part: Part) -> set[int]:
    if part == "layer":
        return set(selection.attention) & set(selection.ffn)
    return set(selection.dropped(part))


def _score(
    kind: Part,
    layer: int,
    value: float | None,
    look: str,
    columns: int,
    height: Height,
    scale: Axis,
) -> Markup:
    x, width = (layer + 0.1) / columns, 0.8 / columns
    fate = "left out" if look == "out" else "kept"
    shown = "not measured" if value is None else numbers.significant(value, 4)
    parts = [svg.tip(f"layer {layer}, {KIND_LABEL[kind]} ({fate}): {shown}")]
    base = height(0.0)
    if value is None:
        parts.append(svg.mark((layer + 0.5) / columns, base - 6, 2, "missing"))
    else:
        y = height(value)
        top, tall = min(base, y), max(1.0, abs(base - y))
        parts.append(svg.box(x, top, width, tall, f"score {look}"))
        if scale.cuts(value):
            parts.append(svg.box(x, top + 4 if value > 0 else top + tall - 6, width, 2, "cut"))
    return svg.element("g", *parts, class_="mark")


def _notes(importance: Importance, scale: Axis) -> list[str]:
    """Which sublayers were not scored, and exact values of bars that are cut, highest first."""
    bare = [KIND_LABEL[kind] for kind in KINDS if kind not in importance.scored]
    gaps = [f"Not scored: {' and '.join(bare)}."] if bare else []
    cut = [
        (value, f"layer {layer} {KIND_LABEL[kind]} {numbers.significant(value)}")
        for kind in importance.scored
        for layer in range(importance.layers)
        if (value := importance.of(kind, layer)) is not None and scale.cuts(value)
    ]
    if not cut:
        return gaps
    cut.sort(key=lambda item: -abs(item[0]))
    named = ", ".join(text for _, text in cut[:8])
    more = f" and {len(cut) - 8} more" if len(cut) > 8 else ""
    return [*gaps, f"Cut at the edge of the plot: {named}{more}."]


def path_chart(selection: Selection) -> Chart | None:
    """Harm after each step of the greedy path, in the order in which sublayers went."""
    steps = selection.path
    if not steps:
        return None
    scale = axis((step.harm for step in steps), most=4)
    top, tall = 14.0, 150.0
    bottom = top + tall

    def height(value: float) -> float:
        return top + tall * (1 - scale.at(value))

    drawn: list[Markup] = []
    for tick in scale.ticks:
        y = height(tick)
        drawn.append(svg.line(0, y, 1, y, "zero-line" if tick == 0 else "grid"))
        drawn.append(svg.label(0, y + 4, numbers.tick(tick, scale.step), "tick end", dx=-8))
    drawn += _segments(steps, height)
    for index, step in enumerate(steps):
        drawn.append(_step_mark(index, step, len(steps), height))
    drawn += _step_labels(steps, bottom)
    gaps = [_name(step) for step in steps if step.harm is None or not math.isfinite(step.harm)]
    notes = (f"Without a finite harm: {', '.join(gaps)}.",) if gaps else ()
    picture = svg.plot(
        "path", "Harm after each step of the greedy path", bottom + 26, drawn, "gutter"
    )
    return Chart("path", picture, notes)


def _name(step: Step) -> str:
    return f"{KIND_LABEL[step.kind]} {step.layer}"


def _segments(steps: tuple[Step, ...], height: Height) -> list[Markup]:
    found: list[Markup] = []
    for index in range(1, len(steps)):
        before, after = steps[index - 1].harm, steps[index].harm
        if before is None or after is None or not math.isfinite(before + after):
            continue
        left, right = (index - 0.5) / len(steps), (index + 0.5) / len(steps)
        found.append(svg.line(left, height(before), right, height(after), "trace"))
    return found


def _step_mark(index: int, step: Step, total: int, height: Height) -> Markup:
    if step.harm is None or not math.isfinite(step.harm):
        return Markup("")
    look, shape, _ = _STEP_LOOKS[step.kind]
    exact = f"step {index + 1}: {_name(step)}, harm {numbers.significant(step.harm, 4)}"
    point = svg.mark((index + 0.5) / total, height(step.harm), shape, f"dot solid {look}")
    return svg.element("g", svg.tip(exact), point, class_="mark")


def _step_labels(steps: tuple[Step, ...], bottom: float) -> list[Markup]:
    """`A12`, `F7`, `L3` under each step; thinned out on narrow pages, and where there are many."""
    fine = math.ceil(len(steps) / 24)
    # A multiple of the finer step, or labels of the two would collide.
    coarse = fine * math.ceil(len(steps) / (11 * fine))
    found: list[Markup] = []
    for index, step in enumerate(steps):
        narrow = index % coarse == 0
        if not narrow and index % fine:
            continue
        text = f"{_STEP_LOOKS[step.kind][2]}{step.layer}"
        look = "tick mid" if narrow else "tick mid wide-only"
        found.append(svg.label((index + 0.5) / len(steps), bottom + 18, text, look))
    return found
