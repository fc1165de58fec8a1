"""What a search found, in the terminal: a table to pick from, and a small plot of the frontier."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.text import Text

from skimp.cli import figures as numbers
from skimp.cli import output

if TYPE_CHECKING:
    from rich.table import Table

    Point = tuple[float, float]
    Canvas = list[list[str]]

_POINT, _LINE, _SHARED = "●", "·", "*"
_GUTTER = 8  # columns left of the plot, for labels of harm
_LEAST = (12, 3)  # columns and rows of the plot proper


def table(search: Mapping[str, Any]) -> Table:
    """A row for each plan that the search measured: the frontier from slow to fast, then the rest.

    `search` is what `skimp plan` writes under that name (docs/json.md). `bytes` is the byte bound,
    `loss` the difference to dense; speed and loss have their 95% intervals below. `att/FF` counts
    sublayers left out, and `keep` is the mean share of neurons of the FFs that stay. A plan that is
    not on the frontier is called beaten. It fits 80 columns.
    """
    columns = (">no.", "plan", ">decode", ">bytes", ">loss", ">KL", ">att/FF", ">keep")
    made = output.table("Plans", *columns)
    made.padding = (0, 1, 0, 0)  # eight columns on a narrow terminal
    withheld = {item["number"] for item in search.get("withheld") or ()}
    for plan in sorted(search["plans"], key=_order):
        chosen = plan["number"] == search.get("chosen")
        notes = [
            "chosen" if chosen else "",
            "withheld" if plan["number"] in withheld else "",
            "" if plan.get("frontier") else "beaten",
        ]
        made.add_row(
            str(plan["number"]),
            escape("\n".join([plan["name"], *filter(None, notes)])),
            _lines(numbers.times(plan.get("speedup")), _speeds(plan)),
            numbers.times(plan.get("byte_bound")),
            _lines(numbers.plus(plan.get("loss_difference")), _losses(plan)),
            numbers.significant(plan.get("kl"), 2),
            *_left_out(plan.get("left_out") or {}),
            style="bold" if chosen else None if plan.get("frontier") else "dim",
        )
    return made


def _order(plan: Mapping[str, Any]) -> tuple[bool, float, int]:
    speed = plan.get("speedup") or (1.0 if plan["source"] == "dense" else plan.get("byte_bound"))
    return (not plan.get("frontier"), speed or 0.0, plan["number"])


def _lines(*texts: str) -> str:
    return "\n".join(filter(None, texts))


def _ends(plan: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    ends = plan.get(name)
    if not ends or any(end is None or not math.isfinite(end) for end in ends):
        return None
    return ends[0], ends[1]


def _speeds(plan: Mapping[str, Any]) -> str:
    """The interval of a speedup, and whether it is one; nothing for dense."""
    if plan["source"] == "dense":
        return ""
    if plan.get("speedup") is None:
        return "not timed"
    ends = _ends(plan, "speedup_interval")
    if ends is None:
        return "no interval"
    spread = f"{ends[0]:.2f}–{ends[1]:.2f}"
    return spread if ends[0] > 1 else f"{spread}\nnot faster"


def _losses(plan: Mapping[str, Any]) -> str:
    ends = _ends(plan, "loss_interval")
    if ends is None or plan["source"] == "dense":
        return ""
    return "..".join(numbers.significant(end, 2) for end in ends)


def _left_out(left: Mapping[str, Any]) -> tuple[str, str]:
    """How many sublayers are gone, and the mean share of neurons that the other FFs keep."""
    attention, gone = left.get("attention") or (), set(left.get("ffn") or ())
    keep = [share for layer, share in enumerate(left.get("keep") or ()) if layer not in gone]
    mean = numbers.share(None) if not keep else f"{sum(keep) / len(keep):.0%}"
    return f"{len(attention)}/{len(gone)}", mean


def sketch(
    points: Sequence[Point],
    others: Sequence[tuple[str, float, float]] = (),
    width: int = 60,
    height: int = 14,
) -> Text:
    """A frontier in plain characters: `points` are (speed, harm), slow to fast or not.

    `others` are (name, speed, harm) to hold it against, lettered and named below. What is not
    finite is left out; a place with several marks of different kinds shows `*`. The text is
    `width` columns wide at most and never wraps; there are `height` rows of plot, then the axis of
    speed and a line for each of the others.
    """
    line = sorted({(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)})
    beside = [(n, x, y) for n, x, y in others if math.isfinite(x) and math.isfinite(y)]
    columns, rows = max(_LEAST[0], width - _GUTTER), max(_LEAST[1], height)
    every = [*line, *((x, y) for _, x, y in beside)]
    if not every:
        return Text("nothing measured so far", style="dim")
    across = _Scale.over([x for x, _ in every], columns)
    down = _Scale.over([0.0, *(y for _, y in every)], rows)
    canvas = [[" "] * columns for _ in range(rows)]
    for one, other in pairwise(line):
        for column, row in _between(across, down, one, other):
            canvas[rows - 1 - row][column] = _LINE
    for x, y in line:
        canvas[rows - 1 - down.at(y)][across.at(x)] = _POINT
    letters = [ascii_lowercase[number % 26] for number in range(len(beside))]
    for letter, (_, x, y) in zip(letters, beside, strict=True):
        row = canvas[rows - 1 - down.at(y)]
        column = across.at(x)
        row[column] = letter if row[column] in (" ", _LINE, letter) else _SHARED
    lines = [*_framed(canvas, down), *_axis(columns, across)]
    for letter, (name, x, y) in zip(letters, beside, strict=True):
        said = f"{' ' * _GUTTER}{letter}  {' '.join(name.split())}"
        figures = f"  {numbers.times(x)}, {numbers.significant(y)}"
        room = _GUTTER + columns - len(figures)
        lines.append((said if len(said) <= room else said[: room - 1] + "…") + figures)
    return Text("\n".join(lines), no_wrap=True, overflow="crop")


class _Scale:
    """Numbers onto cells: equal numbers stand in the middle."""

    def __init__(self, low: float, high: float, cells: int) -> None:
        self.low, self.high, self.cells = low, high, cells

    @classmethod
    def over(cls, values: Sequence[float], cells: int) -> _Scale:
        return cls(min(values), max(values), cells)

    def at(self, value: float) -> int:
        # Halved, so that not even the greatest floats overflow.
        span = self.high / 2 - self.low / 2
        if span <= 0:
            return self.cells // 2
        part = (value / 2 - self.low / 2) / span
        return min(self.cells - 1, max(0, round(part * (self.cells - 1))))


def _between(across: _Scale, down: _Scale, one: Point, other: Point) -> Iterator[tuple[int, int]]:
    """Cells on the way from one point to the next, neither of theirs."""
    start = (across.at(one[0]), down.at(one[1]))
    end = (across.at(other[0]), down.at(other[1]))
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    for step in range(1, steps):
        way = step / steps
        yield (
            round(start[0] + way * (end[0] - start[0])),
            round(start[1] + way * (end[1] - start[1])),
        )


def _framed(canvas: Canvas, down: _Scale) -> list[str]:
    """Rows of the plot with the greatest and least harm at their left."""
    labels = [""] * len(canvas)
    if down.high > down.low:
        labels[0], labels[-1] = _label(down.high), _label(down.low)
    else:
        labels[-1 - down.at(down.low)] = _label(down.low)
    return [
        f"{label:>{_GUTTER - 2}} ┤{''.join(row).rstrip()}"
        for label, row in zip(labels, canvas, strict=True)
    ]


def _label(value: float) -> str:
    """As many digits as the gutter has room for."""
    texts = (numbers.significant(value, digits) for digits in (2, 1))
    return next((text for text in texts if len(text) <= _GUTTER - 2), "")


def _axis(columns: int, across: _Scale) -> list[str]:
    """The axis of speed, its ends and its name."""
    low, high = numbers.times(across.low), numbers.times(across.high)
    room = columns - len(low) - len(high)
    if across.high <= across.low:
        words = low.center(columns)
    elif room < 1:  # a figure that is cut would be another one
        words = ""
    else:
        words = f"{low}{('speed' if room >= 9 else '').center(room)}{high}"
    gutter = " " * _GUTTER
    return [f"{'harm':>{_GUTTER - 2}} └{'─' * columns}", f"{gutter}{words}".rstrip()]
