"""What the command line takes for a search (`skimp plan --budget`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(*names: str, metavar: str | None = None, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel="By a search")


BudgetOption = Annotated[
    list[str] | None,
    _option(
        "--budget",
        metavar="LIMIT",
        help="Search for the best plan within limits: loss<=1%, kl<=0.05, speedup>=1.4x, "
        "bytes>=1.3x, memory<=6GiB, kv<=500MiB, or accuracy(TASK,...)>=-1: so many points of mean "
        "accuracy may be lost on tasks, named as for `skimp eval --tasks`. May be given several "
        "times.",
    ),
]
SearchOption = Annotated[
    bool, _option("--search", help="Search without a budget: show the frontier, to --pick from.")
]
CostsOption = Annotated[
    str,
    _option(
        "--costs", help="What counts as speed: measured (on this machine) or bytes (byte bound)."
    ),
]
TimeOption = Annotated[
    float | None,
    _option(
        "--time",
        metavar="MINUTES",
        help="Begin nothing new after so long; the same command goes on later.",
    ),
]
HeldOutOption = Annotated[
    Path | None,
    _option(
        "--held-out",
        metavar="FILE",
        help="Text to judge on [dim](default: a third of the calibration text)[/].",
    ),
]
CompareOption = Annotated[
    bool,
    _option("--compare/--no-compare", help="Set the papers' rules beside the frontier."),
]
WorkersOption = Annotated[
    int | None,
    _option(
        "--workers",
        metavar="N",
        help="Processes that fit and judge plans [dim](default: by cores and memory)[/].",
    ),
]
RayOption = Annotated[
    str | None,
    _option(
        "--ray",
        metavar="ADDRESS",
        help="Fit and judge on a Ray cluster that shares the search's folder.",
    ),
]
StateOption = Annotated[
    Path | None,
    _option(
        "--state",
        metavar="DIR",
        help="Where the search keeps what it found [dim](default: beside --out)[/].",
    ),
]
IncludeOption = Annotated[
    Path | None,
    _option(
        "--include",
        metavar="FOLDER",
        help="Folder of task YAMLs where the tasks of an accuracy budget are looked for first.",
    ),
]
LimitOption = Annotated[
    int | None,
    _option(
        "--limit",
        metavar="N",
        help="Score the first N items of each task only; one half proves [dim](default: all)[/].",
    ),
]
PickOption = Annotated[
    int | None, _option("--pick", metavar="N", help="Write plan N of a search that is done.")
]
