"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from skimp.errors import RequestError


class StopStrings:
    """Gives text out up to the first stop string, which may be torn over many pieces.

    The text stops at the first character that completes any stop string; of several completed by
    the same character the longest counts, so that no part of it is given out. Both follow from the
    text alone, however it was cut into pieces.

    Raises:
        RequestError: a stop string is empty or no string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise RequestError(f"stop: {stops!r} is one string; give a list of strings.")
        for index, stop in enumerate(stops):
            if not isinstance(stop, str):
                raise RequestError(f"stop {index}: {stop!r} is no string; give text to stop at.")
            if not stop:
                raise RequestError(f"stop {index}: it is empty, and every text holds it; drop it.")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text; None while it goes on."""
        return self._stopped

    def add(self, piece: str) -> str:
        """The text that cannot belong to a stop string any more; nothing once one was found."""
        if self._stopped is not None:
            return ""
        text = self._held + piece
        found = [(text.find(stop) + len(stop), len(stop), stop) for stop in self._stops]
        found = [(end, size, stop) for end, size, stop in found if end >= size]
        if found:
            end, size, self._stopped = min(found, key=lambda hit: (hit[0], -hit[1]))
            self._held = ""
            return text[: end - size]
        sure = len(text) - self._open(text)
        self._held = text[sure:]
        return text[:sure]

    def rest(self) -> str:
        """What was held back, at the end of the text; nothing more the second time."""
        held, self._held = self._held, ""
        return held

    def _open(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
