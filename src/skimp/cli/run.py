"""`skimp run`: a paper's experiments, as a recipe writes them down, on any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from skimp.cli import figures as numbers
from skimp.cli import options, output, run_tables
from skimp.cli.common import Run, require_dense

if TYPE_CHECKING:
    from skimp.measure.shelf import Shelf
    from skimp.recipes.outcome import Outcome
    from skimp.recipes.recipe import Recipe
    from skimp.recipes.run import Job, Result, Unit
    from skimp.recipes.stage import Stage


def run_recipe(
    ctx: typer.Context,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="demo, a folder, a .gguf file or a hub id; by default the recipe's own.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder that the recipe's data files lie in; by default the one it names.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAMES", help="These experiments; several with commas."),
    ] = None,
    plans: Annotated[
        list[str] | None,
        typer.Option(
            "--plans",
            metavar="NAMES",
            help="These plans (or patterns such as 'griffin-*') beside dense; several with commas.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="At most N items in each experiment."),
    ] = None,
    state: options.State = None,
    fresh: options.Fresh = False,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Run a paper's experiments on a model, beside the dense model and the paper's own figures.

    Each result is kept as soon as it is finished: after an interrupt, the same
    command goes on where it stopped. Intervals are paired and hold at 95%.

    [bold]Examples[/]

    skimp run recipes/griffin.yaml --json griffin.json
    skimp run recipes/griffin.yaml --model ./my-model --data ./my-data
    skimp run recipes/griffin.yaml --only xsum --plans griffin-0.5,magnitude-0.5 --limit 10
    """
    del debug
    started = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    from skimp.measure.shelf import Shelf, default_folder
    from skimp.recipes import run as runner
    from skimp.recipes.outcome import Outcome

    wanted = _read(recipe, data, only, plans, limit)
    runner.check(wanted)
    shelf = Shelf(state or default_folder("recipes"), Outcome.from_dict, fresh=fresh)
    output.check_folder(shelf.folder, "--state")
    stage, header = _stage(started, wanted, model or wanted.model)
    jobs = runner.jobs(wanted, stage, shelf)
    results = _measure(started, wanted, jobs, stage, shelf)
    for result in results:
        for table in run_tables.results(result):
            started.console.print(table)
        for line in run_tables.notes(result):
            started.console.print(line)
    from skimp.recipes.document import describe

    started.finish({**header, **describe(wanted, results), "limit": limit})


def _read(
    file: Path,
    data: Path | None,
    only: list[str] | None,
    plans: list[str] | None,
    limit: int | None,
) -> Recipe:
    """The recipe, narrowed down to what the options leave of it."""
    from dataclasses import replace

    from skimp.recipes.read import read_recipe

    recipe = read_recipe(file)
    if data is not None:
        recipe = replace(recipe, data=data)
    if only:
        recipe = recipe.only(_names(only))
    if plans:
        recipe = recipe.with_plans(_names(plans))
    return recipe if limit is None else recipe.limited(limit)


def _names(words: list[str]) -> list[str]:
    return [name.strip() for word in words for name in word.split(",") if name.strip()]


def _stage(run: Run, recipe: Recipe, source: str) -> tuple[Stage, dict[str, Any]]:
    """The model with the recipe's plans, and what the document opens with."""
    from skimp.recipes.stage import Stage

    loaded = run.load(source)
    require_dense(loaded, "run")
    stage = Stage.of(recipe, loaded.model, loaded.tokenizer, seed=run.seed, progress=run.progress)
    return stage, run.loaded_header(loaded, stage.anatomy, None)


def _measure(
    run: Run, recipe: Recipe, jobs: list[Job], stage: Stage, shelf: Shelf[Outcome]
) -> list[Result]:
    """Say what there is to do, then do it; an interrupt says how to go on."""
    from skimp.recipes.run import run as measure

    title, citation = escape(recipe.title), escape(recipe.paper.citation)
    run.console.print(f"[bold]{title}[/]\n{citation}", highlight=False)
    run.console.print(run_tables.outlook(jobs))
    units = [unit for job in jobs for unit in job.units]
    missing = [unit for unit in units if unit.missing]
    finished: list[Unit] = []

    def begins(unit: Unit) -> None:
        run.progress.note(f"{len(finished) + 1} of {len(missing)}: {unit.experiment}, {unit.plan}")

    def done(unit: Unit, outcome: Outcome) -> None:
        finished.append(unit)
        run.progress.note(f"  {run_tables.headline(outcome)}, {numbers.seconds(outcome.seconds)}")

    try:
        return measure(jobs, stage, shelf, begins=begins, done=done)
    except KeyboardInterrupt:
        kept = sum(unit.kept is not None for unit in units) + len(finished)
        run.progress.note(
            f"{kept} of {len(units)} results are kept in {shelf.folder}; the same command goes on "
            "from there."
        )
        raise
