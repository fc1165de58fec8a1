"""The tables of `skimp run`: what there is to do, and each experiment beside the paper."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.markup import escape

from skimp.cli import figures as numbers
from skimp.cli import output

if TYPE_CHECKING:
    from rich.table import Table

    from skimp.recipes.outcome import Cell, Outcome
    from skimp.recipes.recipe import PaperFigures
    from skimp.recipes.run import Job, Result

_WIDE = 4  # values beside which there is no room for intervals on the same line


def outlook(jobs: list[Job]) -> Table:
    """What will be run, with counts, before anything is."""
    columns = ("experiment", "kind", ">items", ">too long", ">plans", ">to measure", "what")
    made = output.table("To do", *columns)
    for job in jobs:
        missing = sum(unit.missing for unit in job.units)
        made.add_row(
            job.experiment.name,
            job.kind.name,
            numbers.count(job.prepared.items),
            numbers.count(job.prepared.skipped),
            numbers.count(len(job.units)),
            _to_measure(missing, job),
            escape(job.prepared.words),
        )
    return made


def _to_measure(missing: int, job: Job) -> str:
    kept = all(unit.kept is not None for unit in job.units)
    return "0, all kept" if kept else numbers.count(missing)


def headline(outcome: Outcome) -> str:
    """A result in a few words, as soon as it is there."""
    from skimp.recipes.outcome import compare

    name, cell = next(iter(compare(None, outcome).items()))
    return f"{name} {_value(cell)}"


def results(result: Result) -> Iterator[Table]:
    """A row for each plan; under each value what it changes, and the paper's figures beside.

    What plans with early exits leave out stands in a second table, of those plans alone.
    """
    from skimp.recipes.experiments.tasks import LEFT_OUT

    names = list(dict.fromkeys(name for cells in result.cells.values() for name in cells))
    title = result.job.experiment.title
    scores = [name for name in names if not name.endswith(LEFT_OUT)]
    yield _table(result, title, {name: result.job.kind.titles.get(name, name) for name in scores})
    gone = {name: name.removesuffix(LEFT_OUT) for name in names if name.endswith(LEFT_OUT)}
    if gone:
        yield _table(result, f"{title}: layers left out", gone)


def _table(result: Result, title: str, names: dict[str, str]) -> Table:
    """`names`: the metrics, and what they are called."""
    paper = result.job.experiment.paper
    columns = ["plan"]
    for name, said in names.items():
        columns.append(f">{said}")
        if paper is not None and name in paper.figures:
            columns.append(">paper, recalled" if paper.recalled else ">paper")
    made = output.table(escape(title), *columns)
    made.columns[0].no_wrap = True  # a name that is broken cannot be typed
    for column in made.columns[1:]:
        column.no_wrap = False  # a number that is cut off is a wrong one
    gap = "\n" if len(names) > _WIDE else " "
    for plan, cells in result.cells.items():
        if not any(name in cells for name in names):
            continue
        row = [plan]
        for name in names:
            row.append(_cell(cells[name], gap) if name in cells else numbers.share(None))
            if paper is not None and name in paper.figures:
                row.append(_paper(paper, name, plan, cells[name]))
        made.add_row(*row)
    return made


def notes(result: Result) -> Iterator[str]:
    """What has to be known to read the table."""
    from skimp.recipes.recipe import DENSE

    job = result.job
    skipped = job.prepared.skipped
    gone = f"; passed over as too long: {numbers.count(skipped)}" if skipped else ""
    if job.prepared.items:
        line = f"[dim]{numbers.count(job.prepared.items)} items{gone}."
        if DENSE in result.cells:
            line += " Below a value: its difference to dense, with the paired 95% interval."
        else:
            line += " Below a value: its 95% interval."
        yield f"{line}[/]"
    else:
        yield f"[dim]{escape(job.prepared.words.capitalize())}.[/]"
    if any(outcome.details.get("simulated") for outcome in result.outcomes.values()):
        yield "[dim]Experts were scored in simulated generation mode.[/]"
    paper = job.experiment.paper
    if paper is None:
        return
    said = f"[dim]Paper: {escape(paper.model)}"
    if paper.recalled:
        said += "; figures recalled from memory, not read there: check them before citing"
    yield f"{said}.[/]"


def _cell(cell: Cell, gap: str) -> str:
    """`gap` stands before the interval of a difference."""
    text = _value(cell)
    if cell.difference is not None:
        between = _between(cell)
        text += f"\n{_step(cell, cell.difference)}{gap if between else ''}{between}"
    elif cell.interval is not None and all(map(math.isfinite, cell.interval)):
        value = numbers.share if cell.share else numbers.significant
        low, high = (value(bound) for bound in cell.interval)
        text += f"\n({low} to {high})"
    return text


def _between(cell: Cell) -> str:
    if cell.interval is None or not all(map(math.isfinite, cell.interval)):
        return ""
    low, high = cell.interval
    return f"({_step(cell, low)} to {_step(cell, high)})"


def _paper(paper: PaperFigures, metric: str, plan: str, cell: Cell) -> str:
    from skimp.recipes.recipe import DENSE

    row = paper.figures[metric]
    if plan not in row:
        return numbers.share(None)
    text = numbers.share(row[plan]) if cell.share else numbers.significant(row[plan])
    if plan != DENSE and DENSE in row:
        text += f"\n{_step(cell, row[plan] - row[DENSE])}"
    return text


def _value(cell: Cell) -> str:
    if cell.times:
        return numbers.times(cell.value)
    return numbers.share(cell.value) if cell.share else numbers.significant(cell.value)


def _step(cell: Cell, difference: float) -> str:
    return numbers.points(difference) if cell.share else numbers.plus(difference)
