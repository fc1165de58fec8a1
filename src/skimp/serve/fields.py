"""A request's JSON body, read field by field; every fault names the field and the remedy."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from skimp.serve.faults import Fault, bad

_LONGEST_SHOWN = 40


def parse(raw: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        Fault: it is no JSON object, or one that JSON does not know (NaN, half a character).
    """
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise _unreadable(f"it is no UTF-8 from byte {error.start} on") from None
    except RecursionError:
        raise _unreadable("it is nested too deeply") from None
    except ValueError as error:
        raise _unreadable(" ".join(str(error).split())[:160]) from None
    if not isinstance(found, dict):
        raise Fault(400, f"body: it is {kind(found)}; send a JSON object.", None, "invalid_json")
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _unreadable(problem: str) -> Fault:
    return Fault(400, f"body: it is no JSON ({problem}); send a JSON object.", None, "invalid_json")


def kind(value: Any) -> str:
    """What a JSON value is, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "an array" if isinstance(value, list) else "an object")


def shown(value: Any) -> str:
    """A value in a message: short, and of one line."""
    if isinstance(value, list | dict):
        return kind(value)
    text = json.dumps(value) if not isinstance(value, int) or value < 10**20 else "the number"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


class Fields:
    """Reads the fields of one object; null counts as not given, as OpenAI has it.

    `at`: what to put before the names in messages, for objects inside of others.
    """

    def __init__(self, values: Mapping[str, Any], at: str = "") -> None:
        self._values = values
        self._at = at

    def name(self, field: str) -> str:
        """The field's full name."""
        return f"{self._at}{field}"

    def get(self, field: str) -> Any:
        """The value as it came; None if there is none."""
        return self._values.get(field)

    def only(self, known: Iterable[str]) -> None:
        """Refuse fields that nobody knows."""
        known = list(known)
        for field in self._values:
            if field in known:
                continue
            near = difflib.get_close_matches(field, known, 1) if len(field) < 64 else []
            remedy = f"did you mean {near[0]}?" if near else "leave it out."
            at = self.name(field if len(field) < 64 else f"{field[:64]}…")
            raise Fault(400, f"{at}: no such field is known; {remedy}", at, "unknown_parameter")

    def flag(self, field: str, default: bool = False) -> bool:
        """true or false."""
        value = self.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise bad(self.name(field), f"{shown(value)} is {_no('boolean')}; give true or false.")
        return value

    def whole(self, field: str, low: int, high: int | None, why: str = "") -> int | None:
        """A whole number from `low` to `high`; `why` says whose limit that is."""
        value = self.get(field)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        span = f"from {low} to {high}" if high is not None else f"from {low} on"
        span += f" ({why})" if why else ""
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad(self.name(field), f"{shown(value)} is no whole number; give one {span}.")
        if value < low or (high is not None and value > high):
            raise bad(self.name(field), f"{shown(value)} is out of range; give one {span}.")
        return value

    def number(
        self, field: str, low: float, high: float, default: float, *, above: bool = False
    ) -> float:
        """A number from `low` (or, with `above`, above it) to `high`."""
        value = self.get(field)
        if value is None:
            return default
        span = f"{'above' if above else 'from'} {low:g} {'and up ' if above else ''}to {high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad(self.name(field), f"{shown(value)} is no number; give one {span}.")
        fits = (low < value if above else low <= value) and value <= high
        if not fits or not math.isfinite(value):
            raise bad(self.name(field), f"{shown(value)} is out of range; give one {span}.")
        return float(value)

    def text(self, field: str) -> str | None:
        """A string."""
        value = self.get(field)
        return None if value is None else whole_text(value, self.name(field))

    def object(self, field: str) -> Fields | None:
        """An object, to be read on."""
        value = self.get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise bad(self.name(field), f"it is {kind(value)}; give an object.")
        return Fields(value, f"{self.name(field)}.")


def _no(what: str) -> str:
    return f"no {what}"


def whole_text(value: Any, name: str) -> str:
    """`value` if it is text that UTF-8 can hold; else the fault of the field `name`."""
    if not isinstance(value, str):
        raise bad(name, f"it is {kind(value)}; give a string.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise bad(name, "it holds half of a surrogate pair; send whole characters.") from None
    return value
