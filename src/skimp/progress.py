"""Progress that a long loop can report without knowing who shows it.

Library code takes a :class:`Progress` and calls its step; the default says nothing, and the command
line passes one that draws rich bars.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Step = Callable[[], None]


class Progress:
    """Silent progress; subclasses draw it."""

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Step]:
        """Yield a function to be called once per finished unit of `total` (None: unknown)."""
        del label, total
        yield lambda: None

    def note(self, text: str) -> None:
        """Say one line about what is going on."""
        del text


SILENT = Progress()


class RichProgress(Progress):
    """Bars on standard error, so that standard output stays clean for text and tables."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Step]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(label, total=total)
            yield lambda: bars.advance(task)

    def note(self, text: str) -> None:
        self._console.print(text, style="dim")
