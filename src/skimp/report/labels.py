"""Texts beside the points of a plot, set so that they cover neither each other nor the points."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from skimp.report import svg

_LETTER, _TALL = 6.2, 12.0  # pixels of a letter's width and of a line of the style sheet's ticks
_POINT = 6.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """Area that two boxes share."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        tall = min(self.bottom, other.bottom) - max(self.top, other.top)
        return wide * tall if wide > 0 and tall > 0 else 0.0

    @classmethod
    def around(cls, x: float, y: float) -> "Box":
        """What the mark of a point covers."""
        return cls(x - _POINT, y - _POINT, x + _POINT, y + _POINT)


@dataclass(frozen=True)
class Wish:
    """A text wanted beside a point (`x` a fraction, `y` pixels); `short` if that has no room."""

    x: float
    y: float
    text: str
    short: str = ""
    class_: str = ""


@dataclass(frozen=True)
class Place:
    """Where a text may stand beside its point: pixels from it, and how it is anchored."""

    dx: float
    dy: float
    anchor: str

    def box(self, x: float, y: float, text: str) -> Box:
        """What `text` covers there."""
        wide = _LETTER * len(text)
        left = {"start": 0.0, "mid": -wide / 2, "end": -wide}[self.anchor] + x + self.dx
        bottom = y + self.dy + 3
        return Box(left, bottom - _TALL, left + wide, bottom)


_PLACES = (
    Place(10, 4, "start"),
    Place(-10, 4, "end"),
    Place(8, -8, "start"),
    Place(8, 15, "start"),
    Place(-8, -8, "end"),
    Place(-8, 15, "end"),
    Place(0, -11, "mid"),
    Place(0, 19, "mid"),
)


def place(
    wishes: Sequence[Wish], area: Box, solid: Sequence[Box], thin: Iterable[Box] = ()
) -> list[tuple[Wish, str, Place]]:
    """Where each text goes, earlier wishes first; a text without room is left out.

    `area` is what may be written on, its width that of the narrowest page the labels are meant
    for: points only move apart on wider ones. No text covers a `solid` box or another text;
    `thin` ones (whiskers, lines) are avoided where there is a choice.
    """
    taken, soft = list(solid), list(thin)
    wide = area.right - area.left
    found: list[tuple[Wish, str, Place]] = []
    for wish in wishes:
        x = area.left + wish.x * wide
        for text in filter(None, (wish.text, wish.short)):
            free = [
                (sum(box.shared(other) for other in soft), number, spot, box)
                for number, spot in enumerate(_PLACES)
                for box in [spot.box(x, wish.y, text)]
                if _inside(box, area) and not any(box.shared(other) for other in taken)
            ]
            if free:
                _, _, spot, box = min(free, key=lambda item: item[:2])
                taken.append(box)
                found.append((wish, text, spot))
                break
    return found


def draw(placed: Iterable[tuple[Wish, str, Place]], class_: str) -> list[Markup]:
    """The texts as SVG."""
    return [
        svg.label(
            wish.x,
            wish.y + spot.dy,
            text,
            " ".join(filter(None, ["beside", spot.anchor, wish.class_, class_])),
            dx=spot.dx,
        )
        for wish, text, spot in placed
    ]


def _inside(box: Box, area: Box) -> bool:
    across = area.left <= box.left and box.right <= area.right
    return across and area.top <= box.top and box.bottom <= area.bottom
