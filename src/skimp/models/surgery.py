"""Attribute changes that can be taken back exactly."""

from typing import Any

_ABSENT = object()


class Surgery:
    """Sets attributes and remembers what stood there, so that `undo` restores it in reverse order.

    The replaced modules live only here: once the surgery is dropped, so is their memory.
    """

    def __init__(self) -> None:
        self._log: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Like `setattr`, reversible."""
        self._log.append((owner, name, getattr(owner, name, _ABSENT)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Restore everything; a second call does nothing."""
        while self._log:
            owner, name, value = self._log.pop()
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
