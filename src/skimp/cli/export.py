"""`skimp export`: write the planned model for an engine that knows nothing of skimp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import options, output
from skimp.cli.apply import check_target
from skimp.cli.common import Run, dtype_of, read_plan, require_dense
from skimp.cli.figures import count, size, times
from skimp.errors import ExportError

if TYPE_CHECKING:
    from skimp.export.target import Product, Target
    from skimp.export.verify import Verification
    from skimp.export.write import Refused, Written

MODEL_OR_FOLDER = typer.Argument(
    metavar="[MODEL]",
    help="demo, a folder (one that `skimp apply` wrote brings its plan), a .gguf file, a hub id, "
    "or random:SHAPE.",
    show_default=False,
)


def export(
    ctx: typer.Context,
    model: Annotated[str | None, MODEL_OR_FOLDER] = None,
    plan: Annotated[Path | None, options.APPLIED_PLAN] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TARGET", help="What to write (--list shows them)."),
    ] = None,
    out: Annotated[Path | None, options.MODEL_OUT] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help="Number format of the weights [dim](default: the target's first)[/].",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Run the result in its engine beside the planned model."),
    ] = False,
    engine_python: Annotated[
        Path | None,
        typer.Option(
            "--engine-python",
            metavar="PATH",
            help="Python interpreter that has the engine, to verify with and, for openvino, to "
            "write with [dim](default: this one)[/].",
        ),
    ] = None,
    nearest: Annotated[
        Path | None,
        typer.Option(
            "--nearest",
            metavar="FILE",
            help="Where the target cannot hold the plan, write the nearest that it can to FILE.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What the model is called [dim](default: as its folder)[/]."),
    ] = None,
    listed: Annotated[
        bool,
        typer.Option(
            "--list", help="List the targets; with MODEL, say which can be written and why not."
        ),
    ] = False,
    force: options.Force = False,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "float32",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Write the planned model in the format of an engine, unmodified: vLLM, transformers and more.

    [bold]Examples[/]

    skimp export --list demo --plan plan.yaml
    skimp export demo --plan plan.yaml --to transformers --out smaller
    skimp export demo --plan plan.yaml --to decilm --out served --verify --engine-python VENV/bin/python
    """  # noqa: E501
    del debug
    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    if listed:
        _list(run, model, plan)
        return
    if model is None or to is None or out is None:
        missing = "MODEL" if model is None else "--to TARGET" if to is None else "--out DIR"
        raise ExportError(f"{missing} is missing; `skimp export --list` shows the targets.")
    from skimp.export.registry import target as named

    target = named(to)
    check_target(out, force)
    output.check_file(nearest, "--nearest")
    with product(run, model, plan, name or out.absolute().name, engine_python) as made:
        form = form or target.formats[0]
        document = write(
            run, made, target, form, out, force=force, nearest=nearest, asked=verify,
        )  # fmt: skip
        show(run, document)
        run.finish(document)
        if document["verification"] and document["verification"]["passed"] is False:
            raise ExportError(
                f"--verify: the model in {out} does not say what the planned model says: "
                f"{document['verification']['sentence']}"
            )


@contextmanager
def product(
    run: Run, model: str, plan: Path | None, name: str, python: Path | None = None
) -> Iterator[Product]:
    """The model with its plan on, which is taken off again.

    Raises:
        PlanError: a second plan for a folder that has one, or one that does not fit.
    """
    from skimp.export.dense import dense_anatomy
    from skimp.export.target import Product
    from skimp.methods.apply import apply as put_on
    from skimp.models.anatomy import Anatomy
    from skimp.plan import Plan

    given = None if plan is None else read_plan(plan)
    loaded = run.load(model)
    if given is not None:
        require_dense(loaded, "export")
    if loaded.plan is not None and any(loaded.plan.sections.values()):
        dense = dense_anatomy(loaded.model)
        made = (loaded.model, loaded.tokenizer, loaded.plan, dense, loaded.source)
        yield Product(*made, name, python)
        return
    dense = Anatomy.of(loaded.model)
    chosen = given or Plan.empty(dense)
    with put_on(loaded.model, chosen, anatomy=dense):
        made = (loaded.model, loaded.tokenizer, chosen, dense, loaded.source)
        yield Product(*made, name, python)


def write(
    run: Run,
    made: Product,
    target: Target,
    form: str,
    out: Path,
    *,
    force: bool,
    nearest: Path | None,
    asked: bool,
) -> dict[str, Any]:
    """Write the folder and verify it if asked to; returns the verb's document."""
    from skimp.export.write import Refused
    from skimp.export.write import export as write_folder

    try:
        written = write_folder(made, target, form, out, force=force, progress=run.progress)
    except Refused as error:
        raise _refused(error, nearest, made.source) from None
    found = _verify(run, made, target, written) if asked else None
    planned = made.anatomy
    return {
        **run.header(made.source, made.dense, dtype_of(made.model), made.plan),
        "target": target.name,
        "format": form,
        "out": str(out),
        "path": str(written.path),
        "folder_bytes": written.bytes,
        "parameters": {"dense": made.dense.parameters, "planned": planned.parameters},
        "verification": None if found is None else {**found.to_dict(), "sentence": found.sentence},
    }


def _refused(error: Refused, nearest: Path | None, source: str) -> ExportError:
    """The refusal, with the nearest plan written if that was asked for."""
    if nearest is None:
        return error
    if error.nearest is None:
        return ExportError(f"{error} --nearest: no plan of this model will do.")
    replace(error.nearest, evidence={}).write(nearest)
    fit = f"; fit it first with `skimp plan {source} --fit {nearest}`" if error.unfitted else ""
    return ExportError(f"{error.reasons} The nearest plan that it can hold is in {nearest}{fit}.")


def _verify(run: Run, made: Product, target: Target, written: Written) -> Verification:
    from skimp.export import card
    from skimp.export.verify import verify

    found = verify(made, target, written, python=made.python, progress=run.progress)
    text = card.render(made, target, written.form, found)
    output.write_text(written.folder / card.CARD, text, "--out")
    return found


def _list(run: Run, model: str | None, plan: Path | None) -> None:
    from skimp.export.registry import TARGETS
    from skimp.export.write import obstacles

    if model is None and plan is not None:
        raise ExportError("--plan: name the MODEL that it is for.")
    rows = [
        {
            "target": each.name,
            "engines": list(each.engines),
            "formats": list(each.formats),
            "holds": each.holds,
            "lacks": each.lacks,
        }
        for each in TARGETS.values()
    ]
    if model is not None:
        with product(run, model, plan, Path(model).name) as made:
            for row, each in zip(rows, TARGETS.values(), strict=True):
                found = obstacles(made, each, each.formats[0])
                row["obstacles"] = [str(obstacle) for obstacle in found]
    shown = output.table(
        None, "target", "engines", "formats", "holds" if model is None else "can be written",
        *(["lacks"] if model is None else []),
    )  # fmt: skip
    for row in rows:
        told = [row["holds"], row["lacks"]]
        if model is not None:
            told = ["no: " + " ".join(row["obstacles"]) if row["obstacles"] else "yes"]
        shown.add_row(row["target"], ", ".join(row["engines"]), ", ".join(row["formats"]), *told)
    run.console.print(shown)
    run.finish({"command": run.command, "targets": rows})


def show(run: Run, document: dict[str, Any]) -> None:
    """Print what was written beside the dense model, and what its engine said."""
    made = output.table(None, "", ">dense", ">planned", ">dense/planned")
    dense, planned = document["parameters"]["dense"], document["parameters"]["planned"]
    made.add_row("parameters", count(dense), count(planned), times(dense / planned))
    run.console.print(made)
    if document["verification"]:
        run.console.print(document["verification"]["sentence"])
    run.console.print(
        f"The model is in {document['out']} ({size(document['folder_bytes'])}, "
        f"{document['format']}); its README.md says how to load it."
    )
