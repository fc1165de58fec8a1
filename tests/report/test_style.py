"""Colours that can be read, in light and in dark (WCAG 2.2 AA)."""

import re
from importlib.resources import files

import pytest

CSS = (files("skimp.report") / "templates" / "report.css").read_text()
# (foreground, background, least contrast): 4.5 for text, 3 for marks that carry meaning.
PAIRS = [
    ("ink", "page", 4.5),
    ("ink", "panel", 4.5),
    ("ink", "good-soft", 4.5),
    ("ink", "bad-soft", 4.5),
    ("muted", "page", 4.5),
    ("muted", "panel", 4.5),
    ("good", "good-soft", 4.5),
    ("bad", "bad-soft", 4.5),
    ("bad", "good-soft", 4.5),
    ("good", "panel", 4.5),
    ("bad", "panel", 4.5),
    ("good", "page", 4.5),
    ("bad", "page", 4.5),
    ("kept", "page", 4.5),
    ("mark-ink", "mark", 4.5),
    ("kept", "kept-soft", 3.0),
    ("out", "out-soft", 3.0),
    ("out", "page", 3.0),
    ("third", "page", 3.0),
    ("fourth", "page", 3.0),
]


def palette(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


LIGHT = palette(CSS[: CSS.index("@media")])
DARK = LIGHT | palette(CSS[CSS.index("prefers-color-scheme: dark") : CSS.index("* {")])


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("front", "back", "least"), PAIRS)
def test_contrast(colours: dict[str, str], front: str, back: str, least: float) -> None:
    assert contrast(colours[front], colours[back]) >= least


def test_dark_defines_every_colour_of_light() -> None:
    dark = palette(CSS[CSS.index("prefers-color-scheme: dark") : CSS.index("* {")])
    assert set(dark) == set(LIGHT)


def test_every_variable_is_defined() -> None:
    defined = set(re.findall(r"--([\w-]+):", CSS))
    assert set(re.findall(r"var\(--([\w-]+)\)", CSS)) <= defined
