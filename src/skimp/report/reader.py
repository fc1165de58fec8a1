"""Reading plain JSON documents without trusting them.

A :class:`Reader` never raises on what it finds. What is absent reads as None or empty; what is
there but cannot be read is treated as absent *and* noted, so that the report can say so instead of
hiding it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skimp.report import numbers
from skimp.report.facts import Estimate

MAX_LAYERS = 1000
_BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """`text` with what no HTML file can hold (controls, lone surrogates) shown as U+FFFD."""
    return _BROKEN.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


class Reader:
    """One node of a document: its value, where it stands, and the shared list of complaints."""

    def __init__(self, value: object, path: str, notes: list[str]) -> None:
        self.value: Any = value
        self.path = path
        self.notes = notes

    def __bool__(self) -> bool:
        return isinstance(self.value, Mapping) and bool(self.value)

    def note(self, expected: str) -> None:
        note = f"{clean(self.path)} is not {expected} and was left out of this report."
        if note not in self.notes:
            self.notes.append(note)

    def is_mapping(self) -> bool:
        """True for a mapping; what is there but is none is noted."""
        if self.value is not None and not isinstance(self.value, Mapping):
            self.note("a mapping")
        return isinstance(self.value, Mapping)

    def child(self, name: str) -> "Reader":
        """The node under `name`; an absent one if there is none."""
        value = None
        if isinstance(self.value, Mapping):
            value = self.value.get(name)
        elif self.value is not None:
            self.note("a mapping")
        return Reader(value, f"{self.path}.{name}", self.notes)

    def items(self) -> Iterator[tuple[str, "Reader"]]:
        """Children of a mapping, in its order."""
        if self.value is None:
            return
        if not isinstance(self.value, Mapping):
            self.note("a mapping")
            return
        for key, value in self.value.items():
            yield clean(str(key)), Reader(value, f"{self.path}.{key}", self.notes)

    def elements(self) -> Iterator["Reader"]:
        """Elements of a list, in its order."""
        if self.value is None:
            return
        if isinstance(self.value, str | bytes) or not isinstance(self.value, Sequence):
            self.note("a list")
            return
        for index, value in enumerate(self.value):
            yield Reader(value, f"{self.path}[{index}]", self.notes)

    def as_number(self) -> float | None:
        """A number; None for null, NaN and what is not a number."""
        if self.value is None:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self.note("a number")
            return None
        try:
            number = float(self.value)
        except OverflowError:
            return math.inf if self.value > 0 else -math.inf
        return None if math.isnan(number) else number

    def as_layer(self) -> int | None:
        """The index of a layer, from 0."""
        value = self.value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_LAYERS:
            return value
        self.note(f"the index of a layer (0 to {MAX_LAYERS - 1})")
        return None

    def as_text(self) -> str | None:
        """Text, or a plain value as text; a mapping or list is joined into one line."""
        value = self.value
        if value is None:
            return None
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int | float):
            return numbers.setting(value)
        if isinstance(value, Mapping):
            parts = ((name, child.as_text()) for name, child in self.items())
            return ", ".join(f"{name} {text}" for name, text in parts if text) or None
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, Sequence):
            return ", ".join(text for item in self.elements() if (text := item.as_text())) or None
        return clean(str(value))

    def number(self, name: str) -> float | None:
        """The number under `name`."""
        return self.child(name).as_number()

    def text(self, name: str) -> str | None:
        """The text under `name`; a blank one counts as absent."""
        return self.child(name).as_text() or None

    def scores(self, name: str) -> tuple[float | None, ...]:
        """A list of numbers under `name`, one a layer, gaps as None."""
        found = tuple(item.as_number() for item in self.child(name).elements())
        if len(found) > MAX_LAYERS:
            self.child(name).note(f"a list of at most {MAX_LAYERS} numbers")
            return ()
        return found

    def layers(self, name: str) -> tuple[int, ...]:
        """A list of layer indices under `name`, ascending, each once."""
        found = (item.as_layer() for item in self.child(name).elements())
        return tuple(sorted({layer for layer in found if layer is not None}))

    def interval(self, name: str) -> tuple[float | None, float | None]:
        """A pair `[low, high]` under `name`; both None unless both are numbers."""
        node = self.child(name)
        if node.value is None:
            return None, None
        ends = [item.as_number() for item in node.elements()]
        if len(ends) != 2:
            node.note("a pair [low, high]")
            return None, None
        low, high = ends
        if low is None or high is None:
            return None, None
        return min(low, high), max(low, high)

    def estimate(self, value: str, interval: str) -> Estimate:
        """The number under `value` with the pair under `interval`."""
        return Estimate(self.number(value), *self.interval(interval))
