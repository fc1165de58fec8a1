"""The plot of a search: what every plan costs in quality, against what it wins in speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from skimp.report import labels, numbers, svg, words
from skimp.report.charts import shorten
from skimp.report.frontier_facts import Candidate, Search
from skimp.report.scale import Axis, axis, ticks

_TOP, _TALL = 22.0, 330.0
_BOTTOM = _TOP + _TALL
_SERIES = {"finder": 0, "rule": 1, "dense": 2}
_BEYOND = 3
_WIDE, _NARROW = 520.0, 240.0  # pixels that a plot has at least, with and without `wide-only`
_NAME = 30


@dataclass(frozen=True)
class FrontierChart:
    """The picture, what its axis of speed is, whether plans that were not timed stand on it, and
    what it cannot show by itself."""

    picture: Markup
    across: str
    untimed: bool
    timed: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spot:
    """A plan on the plot: a fraction from the left, and pixels from the top."""

    plan: Candidate
    x: float
    y: float


def frontier_chart(search: Search | None) -> FrontierChart | None:
    """Loss difference against decode speed, a mark a plan; None if nothing can be placed."""
    drawable = [
        plan
        for plan in (search.ordered if search else ())
        if plan.speed is not None and plan.harm is not None
    ]
    if search is None or not drawable:
        return None
    across = _speed_axis([plan.speed or 1.0 for plan in drawable])
    down = axis((plan.harm for plan in drawable), trim=True)
    spots = [Spot(plan, across.at(plan.speed or 1.0), _y(plan.harm, down)) for plan in drawable]
    others = [plan for plan in drawable if plan.source != "dense"]
    untimed = any(not plan.timed for plan in others)
    drawn = [*_grid(across, down), *_line(spots)]
    drawn += [_mark(spot, search, across, down) for spot in spots]
    drawn += _labels(spots, search, across, down)
    name = _across(others)
    drawn.append(svg.label(1, _BOTTOM + 40, name, "tick end"))
    title = f"Loss difference to dense against {name}, one mark for each plan"
    return FrontierChart(
        svg.plot("frontier-plot", title, _BOTTOM + 48, drawn, "gutter"),
        name,
        untimed,
        any(plan.timed for plan in others),
        tuple(_notes(search, drawable, down)),
    )


def _across(others: Sequence[Candidate]) -> str:
    """What the axis of speed is: nothing that was not timed may pass for a speedup."""
    timed = [plan.timed for plan in others]
    if all(timed):
        return "measured decode speedup"
    return "measured decode speedup, or byte bound" if any(timed) else "byte bound, not timed"


def _speed_axis(values: Sequence[float]) -> Axis:
    """From a little before the slowest to a little behind the fastest; dense is always on it."""
    low, high = min(1.0, *values), max(1.0, *values)
    margin = 0.05 * (high - low) or 0.05
    low, high = low - margin, high + margin
    found = [tick for tick in ticks(low, high, 6) if low <= tick <= high]
    return Axis(low, high, tuple(found))


def _y(value: float | None, down: Axis) -> float:
    return _TOP + _TALL * (1 - down.at(value or 0.0))


def _grid(across: Axis, down: Axis) -> list[Markup]:
    drawn = [svg.label(0, 9, "loss difference, nats per token", "panel-name")]
    for tick in down.ticks:
        y = _y(tick, down)
        drawn.append(svg.line(0, y, 1, y, "zero-line" if tick == 0 else "grid"))
        drawn.append(svg.label(0, y + 4, numbers.tick(tick, down.step), "tick end", dx=-8))
    for tick in across.ticks:
        x = across.at(tick)
        drawn.append(svg.line(x, _TOP, x, _BOTTOM, "zero-line" if tick == 1 else "grid"))
        if x < 0.97:  # a label further to the right would be cut
            text = f"{numbers.tick(tick, across.step)}×"
            drawn.append(svg.label(x, _BOTTOM + 20, text, "tick mid"))
    return drawn


def _line(spots: Sequence[Spot]) -> list[Markup]:
    """Dense and the finder's plans that no other beats; dashed where one end was not timed."""
    on = [spot for spot in spots if spot.plan.frontier and spot.plan.source != "rule"]
    drawn: list[Markup] = []
    for one, other in pairwise(sorted(on, key=lambda spot: (spot.x, -spot.y))):
        dashed = "" if one.plan.timed and other.plan.timed else " dashed"
        drawn.append(svg.line(one.x, one.y, other.x, other.y, f"trace series-0{dashed}"))
    return drawn


def _mark(spot: Spot, search: Search, across: Axis, down: Axis) -> Markup:
    plan, series = spot.plan, _SERIES[spot.plan.source]
    parts = [svg.tip(said(plan, search)), *_whiskers(spot, across, down, f"series-{series}")]
    if plan.number == search.chosen:
        ring = svg.element("circle", cx=svg.percent(spot.x), cy=spot.y, r=9, class_="ring")
        parts.append(ring)
    look = f"dot {'solid' if plan.timed else 'untimed'} series-{series}"
    # What lies beyond the edge stands there as an arrow head, in the colour of its kind.
    shape = _BEYOND if down.cuts(plan.harm or 0.0) else series
    parts.append(svg.mark(spot.x, spot.y, shape, look))
    return svg.element("g", *parts, class_="mark")


def _whiskers(spot: Spot, across: Axis, down: Axis, look: str) -> list[Markup]:
    """The intervals: of the loss with small ends, of the speed a faint line."""
    loss, speed, drawn = spot.plan.loss, spot.plan.speedup, []
    if speed.has_interval and speed.low is not None and speed.high is not None:
        low, high = across.at(speed.low), across.at(speed.high)
        drawn.append(svg.line(low, spot.y, high, spot.y, f"whisker faint {look}"))
    if loss.has_interval and loss.low is not None and loss.high is not None:
        ends = [(value, _y(value, down)) for value in (loss.low, loss.high)]
        drawn.append(svg.line(spot.x, ends[0][1], spot.x, ends[1][1], f"whisker {look}"))
        for value, y in ends:
            if not down.cuts(value):
                drawn.append(_cap(spot.x, y, look))
    return drawn


def _cap(x: float, y: float, look: str) -> Markup:
    """A small end across a whisker: pixels wide, at a percentage."""
    stroke = svg.element("path", d="M-3 0H3", class_=f"whisker {look}")
    return svg.element("svg", stroke, x=svg.percent(x), y=y, overflow="visible", class_="at")


def _labels(spots: Sequence[Spot], search: Search, across: Axis, down: Axis) -> list[Markup]:
    """Names on wide pages, numbers on narrow ones; the chosen plan first, the finder's last."""
    order = sorted(spots, key=lambda spot: _rank(spot.plan, search))
    names = [_wish(spot, search) for spot in order]
    digits = [
        labels.Wish(spot.x, spot.y, wish.short or wish.text, class_=wish.class_)
        for spot, wish in zip(order, names, strict=True)
    ]
    found: list[Markup] = []
    for wide, wishes, look in ((_WIDE, names, "wide-only"), (_NARROW, digits, "narrow-only")):
        area = labels.Box(0, _TOP - 6, wide, _BOTTOM - 2)
        solid = [labels.Box.around(wide * spot.x, spot.y) for spot in spots]
        thin = [box for spot in spots for box in _covered(spot, wide, across, down)]
        found += labels.draw(labels.place(wishes, area, solid, thin), look)
    return found


def _covered(spot: Spot, wide: float, across: Axis, down: Axis) -> list[labels.Box]:
    """What the whiskers of a plan cover, on a plot of `wide` pixels."""
    loss, speed, x, found = spot.plan.loss, spot.plan.speedup, wide * spot.x, []
    if loss.has_interval:
        found.append(labels.Box(x - 2, _y(loss.high, down), x + 2, _y(loss.low, down)))
    if speed.low is not None and speed.high is not None and speed.has_interval:
        left, right = wide * across.at(speed.low), wide * across.at(speed.high)
        found.append(labels.Box(left, spot.y - 2, right, spot.y + 2))
    return found


def _rank(plan: Candidate, search: Search) -> tuple[int, int]:
    kinds = ("dense", "rule", "finder")
    return (-1 if plan.number == search.chosen else kinds.index(plan.source), plan.number)


def _wish(spot: Spot, search: Search) -> labels.Wish:
    plan, number = spot.plan, str(spot.plan.number)
    if plan.number == search.chosen:
        return labels.Wish(spot.x, spot.y, f"{number}, chosen", number, "strong")
    if plan.source == "dense":
        return labels.Wish(spot.x, spot.y, "dense")
    if plan.source == "rule":
        return labels.Wish(spot.x, spot.y, shorten(plan.name, _NAME), number)
    return labels.Wish(spot.x, spot.y, number)


def said(plan: Candidate, search: Search) -> str:
    """The exact numbers behind a mark."""
    chosen = ", chosen" if plan.number == search.chosen else ""
    pieces = [f"plan {plan.number}, {plan.name}{chosen}"]
    if plan.source != "dense":
        pieces.append(_speed_words(plan))
    if plan.loss.value is not None:
        spread = words.between(plan.loss, "plain")
        inside = f" (95% interval {spread})" if spread else ""
        pieces.append(f"loss {numbers.plus(plan.loss.value)}{inside} nats per token")
    if plan.kl.value is not None:
        pieces.append(f"KL {numbers.significant(plan.kl.value)}")
    if plan.agreement is not None:
        pieces.append(f"same likeliest token {numbers.share(plan.agreement)}")
    return "; ".join(pieces)


def _speed_words(plan: Candidate) -> str:
    bound = f"byte bound {numbers.times(plan.bound)}" if plan.bound is not None else ""
    if plan.speedup.value is None:
        return f"not timed, {bound}" if bound else "not timed"
    spread = words.between(plan.speedup)
    inside = f" (95% interval {spread})" if spread else ", without an interval"
    measured = f"decode {numbers.times(plan.speedup.value)}{inside}"
    return f"{measured}, {bound}" if bound else measured


def _notes(search: Search, drawable: Sequence[Candidate], down: Axis) -> list[str]:
    """Plans beyond the edge of the plot, and those that have no place on it."""
    cut = [
        f"plan {plan.number} ({plan.name}) {numbers.plus(plan.harm)}"
        for plan in drawable
        if plan.harm is not None and down.cuts(plan.harm)
    ]
    gone = [str(plan.number) for plan in search.plans if plan not in drawable]
    found = [f"Beyond the edge of the plot: {', '.join(cut)}."] if cut else []
    if gone:
        found.append(f"Not on the plot, for want of a speed or a loss: {', '.join(gone)}.")
    return found
