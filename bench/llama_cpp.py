"""What plans win in llama.cpp: the exported plan beside the dense model in the same format.

    python bench/llama_cpp.py --llama-python VENV/bin/python --json llama-cpp.json

Both files are written by skimp and loaded by one process of llama.cpp, which decodes a few steps of
one, then of the other, in turns; medians of neighbouring turns are compared.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

# Run as a script, Python looks for modules beside it, where the package `bench` is not to be found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.peering import pairs
from bench.peering.roster import KINDS, Kind
from bench.peering.subject import step_bytes

import skimp
from skimp.cli import output
from skimp.errors import SkimpError
from skimp.export.gguf.target import TARGET, write
from skimp.export.target import Product
from skimp.measure.machine import identity
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.progress import RichProgress
from skimp.workload import Workload

_ROOT = Path(__file__).resolve().parents[1]
_MODELS = ("demo", "random:llama-1.1b,layers=8")
_FORMS: dict[str, Kind] = {
    "f16": KINDS["llama.cpp"],
    "bf16": KINDS["llama.cpp"],
    "q8_0": KINDS["llama.cpp-q8"],
}
_BAR = 0.9  # of the byte bound


def plans(anatomy: Anatomy) -> Iterator[tuple[str, Plan]]:
    """Plans for any model, by name; which neurons are kept does not matter to the clock."""
    empty = Plan.empty(anatomy)
    layers = range(anatomy.dense_layers)
    order = [*layers[1::2], *layers[::2]]
    gone = sorted(order[: len(order) // 3])
    yield "33% of attention", empty.with_section("drop", {"attention": gone})
    half = empty.with_section("experts", {"keep": 0.5, "scope": "calibrated"})
    kept = torch.arange(anatomy.ffn_size // 2, dtype=torch.int32)
    values = {f"experts.ffn.{layer}.kept": kept for layer in layers}
    yield "half of the neurons", half.with_values(values)


def main(
    models: Annotated[str, typer.Option(help="Models, separated by spaces.")] = " ".join(_MODELS),
    forms: Annotated[str, typer.Option(help=f"Of {', '.join(_FORMS)}.")] = "f16,q8_0",
    context: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    turns: Annotated[int, typer.Option(min=6)] = 24,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of a turn.")] = 4,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    llama_python: Annotated[
        str | None, typer.Option(help="A Python that has llama_cpp (else $SKIMP_PEERS_LLAMA).")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Where files lie meanwhile (the system's default).")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Time exported plans beside dense; print measured speedup, byte bound and what it came to."""
    try:
        output.check_file(json_file, "--json")
        unknown = [form for form in forms.split(",") if form not in _FORMS]
        if unknown:
            raise SkimpError(f"--forms: {unknown[0]!r} is none of {', '.join(_FORMS)}.")
        python = llama_python or os.environ.get("SKIMP_PEERS_LLAMA") or sys.executable
        job = {"threads": threads, "context": context, "turns": turns, "steps": steps}
        rows = []
        total = len(models.split()) * len(forms.split(",")) * 2
        with (
            tempfile.TemporaryDirectory(dir=work) as scratch,
            RichProgress().task("pairs", total) as step,
        ):
            for source in models.split():
                for row in _rows(source, forms.split(","), python, job, Path(scratch)):
                    rows.append(row)
                    step()
    except SkimpError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    document: dict[str, Any] = {
        "machine": identity(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **job,
        "pairs": rows,
    }
    title = f"Decode speedup in llama.cpp and its byte bound, batch 1, {threads} thread(s)"
    output.console().print(pairs.table(title, rows, "format"))
    if json_file is not None:
        output.write_text(json_file, output.dump(document), "--json")


def _rows(
    source: str, forms: list[str], python: str, job: dict[str, Any], folder: Path
) -> Iterator[dict[str, Any]]:
    model: Any = skimp.load(source, dtype="bf16").model
    dense = Anatomy.of(model)
    for form in forms:
        paths = [folder / "dense.gguf", folder / "planned.gguf"]
        _export(Product(model, None, Plan.empty(dense), dense, source, "dense"), form, paths[0])
        for name, plan in plans(dense):
            with skimp.apply(model, plan, anatomy=dense):
                product = Product(model, None, plan, dense, source, "planned")
                _export(product, form, paths[1])
                planned = product.anatomy
            times = _times(python, {**job, "files": [str(path) for path in paths]})
            window = Workload(job["context"], (1 + job["turns"]) * job["steps"])
            read = [step_bytes(each, window, _FORMS[form]) for each in (dense, planned)]
            found = pairs.row(
                *([median(turn) for turn in side] for side in times), read[0] / read[1]
            )
            yield {
                "model": source,
                "plan": name,
                "format": form,
                **found,
                "passed": found["share"] >= _BAR,
                "files": [path.stat().st_size for path in paths],
            }


def _export(product: Product, form: str, path: Path) -> None:
    found = TARGET.obstacles(product, form)
    if found:
        raise SkimpError(f"{product.source}: {found[0]}")
    write(product, form, path)


def _times(python: str, job: dict[str, Any]) -> list[list[list[float]]]:
    done = subprocess.run(
        [python, "-m", "bench.engines.pair"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=_ROOT,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SkimpError(f"--llama-python: {python} cannot run llama.cpp ({last}).")
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    typer.run(main)
