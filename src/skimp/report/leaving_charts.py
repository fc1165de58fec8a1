"""Pictures of early exits: a text coloured by depth, histograms, agreement against depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from skimp.report import numbers, svg
from skimp.report.facts import DecidedToken, DepthAgreement, DepthShares, Leaving
from skimp.report.layer_map import index_labels
from skimp.report.scale import Axis, ticks

STEPS = 5  # colours of depths that leave layers out; what runs all of them has none
_SHORT, _TALL = 110.0, 190.0
_SERIES = ("plain", "translated", "left")


@dataclass(frozen=True)
class Shade:
    """One colour of the text, and the depths it stands for, in words."""

    step: int
    depths: str


@dataclass(frozen=True)
class Piece:
    """A stretch of text: its colour, and what to say of it."""

    text: str
    step: int
    agrees: bool
    said: str


@dataclass(frozen=True)
class Decided:
    """A text coloured by how early its tokens were decided."""

    pieces: tuple[Piece, ...]
    shades: tuple[Shade, ...]
    others: int


@dataclass(frozen=True)
class Histogram:
    """A group's picture."""

    group: DepthShares
    picture: Markup


def sample(leaving: Leaving | None) -> Decided | None:
    """The sample's tokens with their colours; None without a sample."""
    if leaving is None or not leaving.sample:
        return None
    found = leaving.sample
    early = sorted({token.depth for token in found if token.depth < leaving.layers})
    steps = {depth: _step(early, number) for number, depth in enumerate(early)}
    pieces = tuple(_piece(token, steps.get(token.depth, 0), leaving.layers) for token in found)
    named: dict[int, list[int]] = {}
    for depth in early:
        named.setdefault(steps[depth], []).append(depth)
    shades = [Shade(step, _span(depths)) for step, depths in sorted(named.items(), reverse=True)]
    others = sum(not token.agrees for token in found)
    return Decided(pieces, tuple(shades), others)


def _step(early: Sequence[int], number: int) -> int:
    """The earlier, the stronger; depths share a colour where there are more of them."""
    if len(early) <= STEPS:
        return STEPS - number
    return STEPS - number * STEPS // len(early)


def _span(depths: Sequence[int]) -> str:
    first, last = depths[0], depths[-1]
    return str(first) if first == last else f"{first} to {last}"


def _piece(token: DecidedToken, step: int, layers: int) -> Piece:
    said = f"decided after {token.depth} of {layers} layers"
    if not token.agrees:
        said += "; not what the full model predicts"
    return Piece(token.text, step, token.agrees, said)


def histograms(leaving: Leaving | None) -> list[Histogram]:
    """One picture for each task and for the text, all with the same axes."""
    if leaving is None:
        return []
    top = max((part for group in leaving.groups for _, part in group.depths), default=1.0)
    marks = ticks(0.0, top, 2)
    scale = Axis(0.0, marks[-1], tuple(marks))
    return [
        Histogram(group, _histogram(number, group, leaving.layers, scale))
        for number, group in enumerate(leaving.groups)
    ]


def _histogram(number: int, group: DepthShares, layers: int, scale: Axis) -> Markup:
    drawn: list[Markup] = []
    for tick in scale.ticks:
        y = _height(tick, scale, _SHORT)
        drawn.append(svg.line(0, y, 1, y, "grid"))
        text = f"{numbers.tick(100 * tick, 100 * scale.step)}%"
        drawn.append(svg.label(0, y + 4, text, "tick end", dx=-8))
    columns = layers + 1
    for depth, part in group.depths:
        y = _height(part, scale, _SHORT)
        whole = " whole" if depth == layers else ""
        bar = svg.box(
            (depth + 0.12) / columns, y, 0.76 / columns, 10 + _SHORT - y, f"depth-bar{whole}"
        )
        said = svg.tip(f"after {depth} of {layers} layers: {numbers.share(part)} of tokens")
        drawn.append(svg.element("g", said, bar, class_="mark"))
    bottom = 10 + _SHORT + 18
    drawn.append(svg.label(0, bottom, "layers", "tick end", dx=-8))
    drawn += index_labels(range(columns), columns, bottom, most=12)
    title = f"{group.name}: share of tokens by the layers that were run for them"
    return svg.plot(f"depths-{number}", title, bottom + 8, drawn, "gutter")


def agreement_chart(leaving: Leaving | None) -> Markup | None:
    """How often the likeliest token is the full model's, by depth; None if it was not measured."""
    found = list(leaving.agreement) if leaving else []
    if leaving is None or not found:
        return None
    scale = Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    columns = leaving.layers + 1
    drawn: list[Markup] = []
    for tick in scale.ticks:
        y = _height(tick, scale, _TALL)
        drawn.append(svg.line(0, y, 1, y, "grid"))
        drawn.append(svg.label(0, y + 4, f"{100 * tick:.0f}%", "tick end", dx=-8))
    for series, name in enumerate(_SERIES[:2]):
        drawn += _trace(found, name, series, columns, scale)
    drawn += [_marks(one, columns, scale) for one in found]
    bottom = 10 + _TALL + 22
    drawn.append(svg.label(0, bottom, "layers", "tick end", dx=-8))
    drawn += index_labels(range(columns), columns, bottom, most=16)
    title = "Share of tokens whose likeliest token is the full model's, by layers run"
    return svg.plot("depth-agreement", title, bottom + 8, drawn, "gutter")


def _height(value: float, scale: Axis, tall: float) -> float:
    return 10 + tall * (1 - scale.at(value))


def _trace(
    found: Sequence[DepthAgreement], name: str, series: int, columns: int, scale: Axis
) -> list[Markup]:
    points = [(one.depth, getattr(one, name)) for one in found]
    points = [(depth, value) for depth, value in points if value is not None]
    return [
        svg.line(
            (a + 0.5) / columns,
            _height(before, scale, _TALL),
            (b + 0.5) / columns,
            _height(after, scale, _TALL),
            f"trace series-{series}",
        )
        for (a, before), (b, after) in pairwise(points)
    ]


def _marks(one: DepthAgreement, columns: int, scale: Axis) -> Markup:
    said = f"after {one.depth} of the layers: plain {numbers.share(one.plain)}"
    if one.translated is not None:
        said += f", translated {numbers.share(one.translated)}"
    if one.left is not None:
        said += f"; of tokens that leave here {numbers.share(one.left)}"
    parts = [svg.tip(said)]
    for series, name in enumerate(_SERIES):
        value = getattr(one, name)
        if value is not None:
            place = (one.depth + 0.5) / columns
            look = f"dot solid series-{series}"
            parts.append(svg.mark(place, _height(value, scale, _TALL), series, look))
    return svg.element("g", *parts, class_="mark")
