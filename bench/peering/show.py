"""What a run prints: a table, the engines that are missing, and what spoils the figures."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from skimp.cli import output
from skimp.report import numbers

# What is worth a line: an idle engine that took this much of a core, strangers that took as much of
# the machine, and engines of the same weights that agree on fewer tokens.
_IDLE = 0.02
_STRANGERS = 0.1
_AGREE = 0.75


def table(document: dict[str, Any]) -> Any:
    """Engines as rows."""
    rows: dict[str, dict[str, Any]] = document["engines"]
    first = next(iter(rows))
    title = (
        f"{document['model']['source']}, {document['workload']}, {document['threads']} thread(s)"
    )
    made = output.table(
        f"{title}; ratios: time of {first} over that of the engine",
        "engine",
        ">prefill",
        ">decode tok/s (quartiles)",
        ">roofline",
        ">prefill ratio (95%)",
        ">decode ratio (95%)",
        ">tokens alike",
    )
    made.columns[0].no_wrap = True
    for name, row in rows.items():
        low, high = (numbers.significant(1 / seconds) for seconds in reversed(row["tpot_spread"]))
        made.add_row(
            name,
            numbers.seconds(row["prefill_s"]),
            f"{numbers.significant(row['tokens_per_s'])} ({low}–{high})",
            numbers.share(row["roofline_share"]),
            _ratio(row["ratio"], "prefill"),
            _ratio(row["ratio"], "decode"),
            f"{row['agrees']} of {document['places']}",
        )
    return made


def _ratio(ratio: dict[str, Any] | None, name: str) -> str:
    if ratio is None:
        return ""
    low, high = ratio[f"{name}_interval"]
    return f"{numbers.times(ratio[name])} ({low:.2f}–{high:.2f})"


def remarks(document: dict[str, Any]) -> list[str]:
    """Sentences on what is missing from the table, and on what makes its figures doubtful."""
    lines = [f"{name} is left out: {why}." for name, why in document["missing"].items()]
    places = document["places"]
    for name, row in document["engines"].items():
        if row["idle_cpu_share"] > _IDLE:
            lines.append(
                f"{name} used {numbers.share(row['idle_cpu_share'])} of a core while others were "
                "timed: it does not sleep, and slows them down."
            )
        if row["exact"] and row["agrees"] < _AGREE * places:
            lines.append(
                f"{name} chose {row['agrees']} of {places} tokens alike: it may not compute the "
                "same model."
            )
    strangers = document["strangers_cores"]
    if strangers is not None and strangers > _STRANGERS:
        lines.append(
            f"Other programs kept {numbers.significant(strangers)} cores busy meanwhile; time "
            "again on a quiet machine."
        )
    return lines


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error that is drawn between turns only, never during one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bars:
        task = bars.add_task(label, total=total)
        yield lambda: bars.update(task, advance=1, refresh=True)
