"""The map of the layers: a column per layer, attention above FF, importance as a bar."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from skimp.report import numbers, svg
from skimp.report.facts import KIND_LABEL, KINDS, PARTS, Importance, Kind, Selection
from skimp.report.scale import Axis, axis
from skimp.report.words import fill_words

_ROW = 46.0
_GAP = 6.0
_TOP = 4.0
_WIDEST_BAND = 64
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_FILL_CLASS = {"zero": "zero", "mean": "mean", "linear": "linear"}


@dataclass(frozen=True)
class Cell:
    """One sublayer on the map: what became of it, in words and as a class of the style sheet."""

    kind: Kind
    layer: int
    state: str
    looks: str
    importance: float | None
    tip: str


def cells(selection: Selection, kind: Kind) -> list[Cell]:
    """All sublayers of one kind, by layer."""
    ruler, dropped = selection.ruler, set(selection.dropped(kind))
    order = {(s.kind, s.layer): (n, s.harm) for n, s in enumerate(selection.path, start=1)}
    found: list[Cell] = []
    for layer in range(selection.columns):
        state, looks = "kept", "kept"
        if layer in dropped:
            fill = selection.fill
            state = "dropped" if fill.kind == "zero" else f"replaced by {fill_words(fill)}"
            looks = f"out {_FILL_CLASS.get(fill.kind, 'other')}"
        elif not selection.known:
            state, looks = "not recorded", "unknown"
        score, whole = _score(ruler, kind, layer)
        tip = f"layer {layer}, {KIND_LABEL[kind]}: {state}"
        if ruler:
            tip += f"; importance ({ruler.rule}{whole}) {_exact(score)}"
        if place := order.get((kind, layer)) or order.get(("layer", layer)):
            step, harm = place
            tip += (
                f"; step {step} of {len(selection.path)} on the path, harm after it {_exact(harm)}"
            )
        found.append(Cell(kind, layer, state, looks, score, tip))
    return found


def _score(ruler: Importance | None, kind: Kind, layer: int) -> tuple[float | None, str]:
    """The score of a sublayer, or else that of its whole layer, and how to call the latter."""
    if ruler is None:
        return None, ""
    own = ruler.of(kind, layer)
    if own is None and ruler.of("layer", layer) is not None:
        return ruler.of("layer", layer), ", whole layer"
    return own, ""


def _exact(value: float | None) -> str:
    return "not measured" if value is None else numbers.significant(value, 4)


def bands(layers: int) -> list[range]:
    """Layers split into equally long rows of at most 64 columns."""
    if layers == 0:
        return []
    number = math.ceil(layers / _WIDEST_BAND)
    length = math.ceil(layers / number)
    return [range(start, min(layers, start + length)) for start in range(0, layers, length)]


def index_labels(layers: range, columns: int, y: float, most: int = 36) -> list[Markup]:
    """Layer numbers below a row of `columns`, thinned out; on wide pages, at most `most`."""
    coarse = _step(columns, 12)
    # The finer set must contain the coarser one, or labels of the two would collide.
    fine = next(s for s in _STEPS if coarse % s == 0 and (s == coarse or columns / s <= most))
    found: list[Markup] = []
    for place, layer in enumerate(layers):
        middle = (place + 0.5) / columns
        if layer % coarse == 0:
            found.append(svg.label(middle, y, str(layer), "tick mid"))
        elif layer % fine == 0:
            found.append(svg.label(middle, y, str(layer), "tick mid wide-only"))
    return found


def _step(columns: int, most: int) -> int:
    """The smallest round step that leaves at most `most` labels."""
    return next(
        step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if columns / step <= most
    )


def importance_axis(importance: Importance | None) -> Axis:
    """One axis for all kinds of parts, so that their bars can be compared."""
    if importance is None:
        return axis([])
    scores = [score for part in PARTS for score in importance.scores(part)]
    return axis(scores, most=3, trim=True)


def layer_map(selection: Selection) -> Markup:
    """The whole map, one picture per band; empty without layers."""
    rows = [cells(selection, kind) for kind in KINDS]
    scale = importance_axis(selection.ruler)
    pictures = [
        _band(number, layers, rows, scale) for number, layers in enumerate(bands(selection.columns))
    ]
    return Markup("").join(pictures)


def _band(number: int, layers: range, rows: list[list[Cell]], scale: Axis) -> Markup:
    # All bands share the first one's column width; the last may be shorter.
    columns = len(bands(len(rows[0]))[0])
    drawn: list[Markup] = []
    for row, kind in enumerate(KINDS):
        top = _TOP + row * (_ROW + _GAP)
        drawn.append(svg.label(0, top + _ROW / 2 + 4, KIND_LABEL[kind], "row-name", dx=-10))
        for place, layer in enumerate(layers):
            drawn.append(_cell(rows[row][layer], place / columns, top, 1 / columns, scale))
    bottom = _TOP + 2 * _ROW + _GAP
    drawn += index_labels(layers, columns, bottom + 16)
    title = f"Layers {layers.start} to {layers.stop - 1}: what each sublayer became"
    return svg.plot(f"map-{number}", title, bottom + 24, drawn, "gutter map")


def _cell(cell: Cell, x: float, top: float, width: float, scale: Axis) -> Markup:
    left, inner = x + 0.06 * width, 0.88 * width
    marks = [svg.tip(cell.tip), svg.box(left, top, inner, _ROW, "cell")]
    if cell.importance is not None:
        marks += _bar(cell.importance, left, top, inner, scale)
    if "mean" in cell.looks:
        marks.append(svg.line(left, top + _ROW / 2, left + inner, top + _ROW / 2, "sign"))
    elif "linear" in cell.looks:
        marks.append(svg.line(left, top + _ROW, left + inner, top, "sign"))
    elif "zero" in cell.looks:
        marks.append(svg.line(left, top, left + inner, top + _ROW, "sign"))
        marks.append(svg.line(left, top + _ROW, left + inner, top, "sign"))
    return svg.element("g", *marks, class_=f"sub {cell.looks}")


def _bar(value: float, left: float, top: float, width: float, scale: Axis) -> list[Markup]:
    """A bar from the bottom of a cell; never thinner than a hairline, and marked when cut."""
    ceiling = scale.high or 1.0
    height = max(1.5, (_ROW - 4) * min(1.0, max(0.0, value / ceiling)))
    bar = svg.box(left, top + _ROW - height, width, height, "bar")
    if value > scale.high and scale.cuts(value):
        return [bar, svg.box(left, top + 6, width, 2, "cut")]
    return [bar]
