"""The map of a search: a row a plan, a column a layer, the stronger the more is left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from skimp.report import numbers, svg
from skimp.report.charts import shorten
from skimp.report.facts import KIND_LABEL, KINDS, Kind
from skimp.report.frontier_facts import Candidate, Search
from skimp.report.layer_map import bands, index_labels

_HALF, _ROW, _TOP, _APART = 9.0, 24.0, 4.0, 10.0
_NAME = 15
# Opacity of neurons left out; what is left out whole is 1, so that it stands apart.
_FAINTEST, _STRONGEST = 0.16, 0.7


def frontier_map(search: Search | None, layers: int | None) -> Markup | None:
    """One picture for each band of layers; None where nothing is left out."""
    plans = [plan for plan in (search.ordered if search else ()) if plan.source != "dense"]
    columns = max(layers or 0, search.layers if search else 0)
    if search is None or not plans or columns == 0:
        return None
    pictures = (
        _band(number, band, plans, search, columns) for number, band in enumerate(bands(columns))
    )
    return Markup("").join(pictures)


@dataclass(frozen=True)
class MapRow:
    """One row of the map in words."""

    plan: str
    attention: str
    ffn: str
    keep: str
    exits: str


def map_table(search: Search) -> list[MapRow]:
    """What each plan leaves out, in the map's order."""
    return [
        MapRow(
            plan=f"{plan.number} {plan.name}",
            attention=spans(plan.left_out.attention),
            ffn=spans(plan.left_out.ffn),
            keep=", ".join(numbers.share(keep).removesuffix("%") for keep in plan.left_out.keep)
            if any(keep < 1 for keep in plan.left_out.keep)
            else numbers.GAP,
            exits=spans(plan.left_out.exits),
        )
        for plan in search.ordered
        if plan.source != "dense"
    ]


def spans(layers: Sequence[int]) -> str:
    """Ascending layers in short, `0–6, 9`; a gap if there is none."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = (f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return ", ".join(texts) or numbers.GAP


def shade(gone: float) -> float:
    """Opacity of a share left out; 0 for nothing, 1 for all."""
    if gone <= 0 or gone >= 1:
        return 1.0 if gone >= 1 else 0.0
    return _FAINTEST + (_STRONGEST - _FAINTEST) * gone


def _band(
    number: int, layers: range, plans: Sequence[Candidate], search: Search, columns: int
) -> Markup:
    # All bands share the first one's column width; the last may be shorter.
    width = len(bands(columns)[0])
    drawn: list[Markup] = []
    top, before = _TOP, plans[0].frontier
    for plan in plans:
        if plan.frontier != before:
            drawn.append(svg.line(0, top + _APART / 2 - 3, 1, top + _APART / 2 - 3, "rule"))
            top, before = top + _APART, plan.frontier
        drawn += _row(plan, layers, width, top, search)
        top += _ROW
    for place in range(1, len(layers)):
        drawn.append(svg.line(place / width, _TOP - 2, place / width, top - 4, "between"))
    drawn += index_labels(layers, width, top + 12)
    title = f"What each plan leaves out of layers {layers.start} to {layers.stop - 1}"
    return svg.plot(f"frontier-map-{number}", title, top + 20, drawn, "gutter-wide map")


def _row(plan: Candidate, layers: range, width: int, top: float, search: Search) -> list[Markup]:
    chosen = " strong" if plan.number == search.chosen else ""
    name = svg.element("tspan", shorten(f"{plan.number} {plan.name}", _NAME))
    text = svg.element(
        "text",
        svg.tip(f"plan {plan.number}, {plan.name}{', chosen' if chosen else ''}"),
        name,
        x="0",
        y=top + _HALF + 4,
        dx=-10,
        class_=f"row-name{chosen}",
    )
    drawn = [text]
    for half, kind in enumerate(KINDS):
        y = top + half * (_HALF + 1)
        drawn.append(svg.box(0, y, len(layers) / width, _HALF, "stays"))
        for place, layer in enumerate(layers):
            if gone := plan.left_out.gone(kind, layer):
                drawn.append(_cell(plan, kind, layer, gone, place / width, y, 1 / width))
    for layer in plan.left_out.exits:
        if layer in layers:
            x = (layers.index(layer) + 1) / width
            mark = svg.line(x, top - 1, x, top + 2 * _HALF + 2, "may-leave")
            drawn.append(svg.element("g", svg.tip(f"exit after layer {layer}"), mark))
    return drawn


def _cell(
    plan: Candidate, kind: Kind, layer: int, gone: float, x: float, y: float, width: float
) -> Markup:
    if gone >= 1:
        what = "left out"
    else:
        what = f"{numbers.share(1 - gone)} of neurons kept"
    said = svg.tip(f"plan {plan.number}, layer {layer}, {KIND_LABEL[kind]}: {what}")
    cell = svg.element(
        "rect",
        x=svg.percent(x),
        y=y,
        width=svg.percent(width),
        height=_HALF,
        fill_opacity=f"{shade(gone):.2f}",
        class_="goes",
    )
    return svg.element("g", said, cell, class_="mark")
