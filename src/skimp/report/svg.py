"""A few lines of SVG writing: every attribute and text is escaped, no library is needed.

Plots stretch with the page without shrinking their text: horizontal positions are percentages,
vertical ones pixels, and gutters are left by a margin in the style sheet.
"""

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup, escape


def percent(fraction: float) -> str:
    """A horizontal position: 0.125 -> `12.5%`."""
    return f"{round(100 * fraction, 3):g}%"


def element(name: str, *children: object, **attributes: Any) -> Markup:
    """One element; `class_` is class, `_` in other names is `-`, None leaves an attribute out."""
    opening = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        text = f"{round(value, 2):g}" if isinstance(value, float) else escape(value)
        opening.append(f'{key.rstrip("_").replace("_", "-")}="{text}"')
    inner = "".join(escape(child) for child in children)
    # Safe: names are ours, and every value and child has passed through `escape`.
    return Markup(f"<{' '.join(opening)}>{inner}</{name}>")


def plot(
    name: str, title: str, height: float, children: Iterable[object], class_: str = ""
) -> Markup:
    """A whole picture with its accessible title; `name` must be unique within the page."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        *children,
        class_=f"plot {class_}".strip(),
        height=height,
        role="img",
        aria_labelledby=f"{name}-title",
    )


def tip(text: str) -> Markup:
    """The exact numbers behind a mark, shown on hover."""
    return element("title", text)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A line between horizontal fractions and vertical pixels."""
    return element(
        "line", x1=percent(x1), y1=y1, x2=percent(x2), y2=y2, class_=class_
    )  # `y` in pixels, so that strokes stay crisp at any width


def box(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A rectangle from a horizontal fraction, as wide as a fraction."""
    return element(
        "rect",
        x=percent(x),
        y=y,
        width=percent(max(0.0, width)),
        height=max(0.0, height),
        class_=class_,
    )


def label(x: float, y: float, text: str, class_: str, dx: float = 0) -> Markup:
    """Text at a horizontal fraction, moved by `dx` pixels."""
    return element("text", text, x=percent(x), y=y, dx=dx or None, class_=class_)


def mark(x: float, y: float, shape: int, class_: str) -> Markup:
    """A point: disc, diamond, square or triangle by `shape`, told apart without colour."""
    if shape == 0:
        return element("circle", cx=percent(x), cy=y, r=4.5, class_=class_)
    paths = {
        1: "M0-5.5L5.5 0L0 5.5L-5.5 0Z",
        2: "M-4-4H4V4H-4Z",
        3: "M0-5L5 4H-5Z",
    }
    path = element("path", d=paths[1 + (shape - 1) % 3], class_=class_)
    # A nested picture is the one way to place a path at a percentage.
    return element("svg", path, x=percent(x), y=y, overflow="visible", class_="at")
