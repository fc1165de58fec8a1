"""Numbers as tables show them: the report's own forms, fetched when they are first used.

The package `skimp.report` loads its templates' engine on import, which help need not wait for.
"""

from collections.abc import Callable
from importlib import import_module

Form = Callable[..., str]


def _late(name: str) -> Form:
    def form(*values: float | int | None) -> str:
        return getattr(import_module("skimp.report.numbers"), name)(*values)

    return form


count = _late("count")
plus = _late("plus")
points = _late("points")
seconds = _late("seconds")
share = _late("share")
significant = _late("significant")
size = _late("size")
times = _late("times")
