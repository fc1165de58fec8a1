"""`skimp apply`: write the planned model as a folder that loads without skimp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skimp.cli import options, output
from skimp.cli.common import Run, read_plan, require_dense
from skimp.cli.figures import count, size, times
from skimp.errors import SkimpError


def apply(
    ctx: typer.Context,
    model: options.Model,
    plan: Annotated[Path, options.APPLIED_PLAN],
    out: Annotated[Path, options.MODEL_OUT],
    force: options.Force = False,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Write the planned model: a folder of safetensors that transformers loads without skimp.

    [bold]Examples[/]

    skimp apply demo --plan plan.yaml --out smaller
    skimp apply demo --plan plan.yaml --out smaller --force --dtype bfloat16
    """
    del debug
    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    check_target(out, force)
    chosen = read_plan(plan)
    loaded = run.load(model)
    require_dense(loaded, "apply")
    document = write(run, loaded, chosen, out, force=force)
    show(run, document)
    run.finish(document)


def check_target(folder: Path, force: bool) -> None:
    """Raise SkimpError unless a model may be written to `folder`."""
    if folder.is_file():
        raise SkimpError(f"--out: {folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise SkimpError(f"--out: {folder} is not empty; name another folder or add --force.")
        # Never delete what is no model: a slip in the path would be costly.
        if not any((folder / name).is_file() for name in ("config.json", "plan/plan.yaml")):
            raise SkimpError(f"--out: {folder} holds no model to replace; name another folder.")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    output.check_folder(existing, "--out")


def write(run: Run, loaded: Any, plan: Any, out: Path, *, force: bool) -> dict[str, Any]:
    """Apply the plan, write the folder, take the plan off again; returns the verb's document."""
    from skimp.methods.apply import apply as put_on
    from skimp.methods.folder import save
    from skimp.models.anatomy import Anatomy

    dense = Anatomy.of(loaded.model)
    with put_on(loaded.model, plan, anatomy=dense):
        planned = Anatomy.of(loaded.model)
        save(loaded.model, loaded.tokenizer, plan, out, replace=force)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        **run.loaded_header(loaded, dense, plan),
        "out": str(out),
        "dense": {"parameters": dense.parameters, "weight_bytes": dense.weight_bytes},
        "planned": {"parameters": planned.parameters, "weight_bytes": planned.weight_bytes},
        "folder_bytes": written,
    }


def show(run: Run, document: dict[str, Any]) -> None:
    """Print what the folder holds beside the dense model."""
    made = output.table(None, "", ">dense", ">planned", ">dense/planned")
    for name, form in (("parameters", count), ("weight_bytes", size)):
        dense, planned = document["dense"][name], document["planned"][name]
        made.add_row(name.replace("_", " "), form(dense), form(planned), times(dense / planned))
    run.console.print(made)
    run.console.print(f"The planned model is in {document['out']}.")
