"""Pictures of experts: neurons that light up token by token, and what prompts' experts share."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import pairwise

from markupsafe import Markup

from skimp.report import numbers, svg
from skimp.report.facts import Flocking, LayerOverlap, NeuronMap
from skimp.report.layer_map import index_labels
from skimp.report.scale import Axis, ticks

_ROW = 4.0  # pixels of a token
_CELL = 30.0
_FAINTEST, _STRONGEST = 0.06, 0.6  # opacity: numbers on it can be read, in light and in dark
_TALL = 190.0


@dataclass(frozen=True)
class NeuronMaps:
    """The map of each prompt, the colours from 0 to `top`, and what to say of them."""

    pictures: tuple[Markup, ...]
    colours: Markup
    top: str
    neurons: str


@dataclass(frozen=True)
class OverlapChart:
    """The square of shares, and its weakest and strongest colour in words."""

    picture: Markup
    shades: tuple[float, ...]
    low: str
    high: str


def neuron_maps(flocking: Flocking | None) -> NeuronMaps | None:
    """One picture a prompt, tokens from top to bottom; None without a map."""
    if flocking is None or flocking.map is None:
        return None
    found = flocking.map
    pictures = (_neuron_map(number, rows, found) for number, rows in enumerate(found.pictures))
    ramp = svg.element("title", "From dark to bright: from 0 to the highest values")
    which = "its neurons in the model's order" if found.every == 1 else _every(found)
    return NeuronMaps(
        pictures=tuple(pictures),
        colours=Markup("").join([ramp, _image([bytes(range(256))], 0, 12)]),
        top=numbers.significant(found.top),
        neurons=which,
    )


def _every(found: NeuronMap) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(found.every % 10, "th")
    ending = "th" if found.every % 100 in (11, 12, 13) else ending
    count = numbers.count(found.neurons)
    return f"every {found.every}{ending} of its {count} neurons in the model's order"


def _neuron_map(number: int, rows: Sequence[bytes], found: NeuronMap) -> Markup:
    columns, tall = len(rows[0]), _ROW * len(rows)
    drawn = [_image(rows, 6, tall)]
    for token in range(0, len(rows), 16):
        drawn.append(svg.label(0, 6 + _ROW * (token + 0.5) + 4, str(token), "tick end", dx=-8))
    drawn.append(svg.label(0, 6 + tall + 18, "neuron", "tick end", dx=-8))
    for neuron in ticks(0, columns * found.every, 5):
        place = (neuron / found.every + 0.5) / columns
        if place < 0.97:
            text = numbers.count(neuron)
            drawn.append(svg.label(place, 6 + tall + 18, text, "tick mid"))
    title = (
        f"Prompt {number + 1}, layer {found.layer}: relative magnitude of neurons at each of the "
        f"first {len(rows)} tokens"
    )
    return svg.plot(f"neurons-{number}", title, 6 + tall + 24, drawn, "gutter")


def _image(rows: Sequence[bytes], y: float, height: float) -> Markup:
    """Levels as one pixel each, stretched to the width: thousands of shapes would be too heavy."""
    return svg.element(
        "image",
        x="0",
        y=y,
        width="100%",
        height=height,
        preserveAspectRatio="none",
        href=_png(tuple(rows)),
        class_="heat",
    )


@cache
def _png(rows: tuple[bytes, ...]) -> str:
    # A fixed scale, dark to bright in even steps: it reads the same on a light and a dark page.
    import numpy as np
    from matplotlib.image import imsave

    file = BytesIO()
    levels = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)
    imsave(file, levels, vmin=0, vmax=255, cmap="magma", format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def overlap_chart(flocking: Flocking | None) -> OverlapChart | None:
    """A square, prompt by prompt, darker the more experts two share; None without pairs."""
    if flocking is None or not flocking.pairs:
        return None
    pairs, size = flocking.pairs, len(flocking.pairs)
    apart = [share for i, row in enumerate(pairs) for j, share in enumerate(row) if i != j]
    chance = flocking.mean.chance if flocking.mean else None
    low = min(apart) if chance is None else min(chance, *apart)
    scale = Axis(low, max(apart), ())
    drawn: list[Markup] = []
    for i, row in enumerate(pairs):
        middle = _CELL * (i + 0.5) + 4
        drawn.append(svg.label(0, middle, str(i + 1), "tick end", dx=-8))
        drawn += [_pair(i, j, share, size, scale) for j, share in enumerate(row)]
    bottom = _CELL * size
    drawn.append(svg.label(0, bottom + 18, "prompt", "tick end", dx=-8))
    for j in range(size):
        drawn.append(svg.label((j + 0.5) / size, bottom + 18, str(j + 1), "tick mid"))
    title = "Share of the experts of one prompt that another chose too, mean over the layers"
    named = "by chance" if low == chance else "the least"
    return OverlapChart(
        svg.plot("overlap", title, bottom + 24, drawn, "gutter"),
        tuple(_shade(step / 5) for step in range(6)),
        f"{numbers.share(low)}, {named}",
        f"{numbers.share(max(apart))}, the most",
    )


def _shade(part: float) -> float:
    return _FAINTEST + (_STRONGEST - _FAINTEST) * part


def _pair(i: int, j: int, share: float, size: int, scale: Axis) -> Markup:
    left, top, wide = (j + 0.03) / size, _CELL * i + 1, 0.94 / size
    if i == j:
        parts = [svg.tip(f"prompt {i + 1} with itself")]
        parts.append(svg.box(left, top, wide, _CELL - 2, "pair itself"))
        return svg.element("g", *parts, class_="mark")
    shade = svg.element(
        "rect",
        x=svg.percent(left),
        y=top,
        width=svg.percent(wide),
        height=_CELL - 2,
        class_="pair",
        fill_opacity=_shade(scale.at(share)),
    )
    parts = [svg.tip(f"prompts {i + 1} and {j + 1}: {numbers.share(share)} in common"), shade]
    parts.append(svg.label((j + 0.5) / size, top + _CELL / 2 + 3, f"{100 * share:.0f}", "mid"))
    return svg.element("g", *parts, class_="mark")


def layers_chart(flocking: Flocking | None) -> Markup | None:
    """What halves of prompts share in each layer: of one, of two, and by chance."""
    layers = list(flocking.layers) if flocking else []
    shown = [value for one in layers for value in (one.own, one.other, one.chance)]
    ends = [value for value in shown if value is not None]
    if not ends:
        return None
    marks = ticks(min(ends), max(ends), 4)
    scale = Axis(marks[0], marks[-1], tuple(marks))
    columns = layers[-1].layer + 1
    drawn: list[Markup] = []
    for tick in scale.ticks:
        y = _height(tick, scale)
        drawn.append(svg.line(0, y, 1, y, "grid"))
        text = f"{numbers.tick(100 * tick, 100 * scale.step)}%"
        drawn.append(svg.label(0, y + 4, text, "tick end", dx=-8))
    for one in layers:
        if one.chance is not None:
            y = _height(one.chance, scale)
            left, right = one.layer / columns, (one.layer + 1) / columns
            drawn.append(svg.line(left, y, right, y, "chance-line"))
    for series, name in enumerate(("own", "other")):
        drawn += _trace(layers, name, series, columns, scale)
    drawn += [_layer_marks(one, columns, scale) for one in layers]
    drawn.append(svg.label(0, 10 + _TALL + 22, "layer", "tick end", dx=-8))
    drawn += index_labels(range(columns), columns, 10 + _TALL + 22, most=16)
    title = "Share of experts in common by layer: halves of one prompt, of two, and by chance"
    return svg.plot("overlap-layers", title, 10 + _TALL + 30, drawn, "gutter")


def _height(value: float, scale: Axis) -> float:
    return 10 + _TALL * (1 - scale.at(value))


def _trace(
    layers: Sequence[LayerOverlap], name: str, series: int, columns: int, scale: Axis
) -> list[Markup]:
    points = [(one.layer, getattr(one, name)) for one in layers]
    points = [(layer, value) for layer, value in points if value is not None]
    return [
        svg.line(
            (a + 0.5) / columns,
            _height(before, scale),
            (b + 0.5) / columns,
            _height(after, scale),
            f"trace series-{series}",
        )
        for (a, before), (b, after) in pairwise(points)
    ]


def _layer_marks(one: LayerOverlap, columns: int, scale: Axis) -> Markup:
    said = f"layer {one.layer}: its own {numbers.share(one.own)}, another's "
    said += f"{numbers.share(one.other)}, by chance {numbers.share(one.chance)}"
    parts = [svg.tip(said)]
    for series, value in enumerate((one.own, one.other)):
        if value is not None:
            place = (one.layer + 0.5) / columns
            mark = svg.mark(place, _height(value, scale), series, f"dot solid series-{series}")
            parts.append(mark)
    return svg.element("g", *parts, class_="mark")
