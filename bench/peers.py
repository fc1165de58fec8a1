"""Decode and prefill of one model in several engines, taking turns in one run.

    python bench/peers.py --model demo --workload 128+128 --json peers.json

See bench/README.md for what is compared and how to install the engines.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

# Run as a script, Python looks for modules beside it, where the package `bench` is not to be found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.peering import roster, show
from bench.peering.bench import Bench
from bench.peering.process import Out
from bench.peering.schedule import Timing

from skimp.cli import output
from skimp.errors import SkimpError
from skimp.workload import Workload


def main(
    model: Annotated[str, typer.Option(help="Any model that skimp loads.")] = "demo",
    workload: Annotated[str, typer.Option(metavar="PROMPT+NEW")] = "128+128",
    engines: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help=f"Of {', '.join(roster.KINDS)}; the others are compared with the first.",
        ),
    ] = roster.DEFAULT,
    threads: Annotated[int, typer.Option(min=1, help="Compute threads of each engine.")] = 1,
    rounds: Annotated[int, typer.Option(min=6, help="Requests of each engine.")] = 6,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps of a request, at most.")] = 32,
    turn: Annotated[int, typer.Option(min=1, help="Decode steps between two changes.")] = 8,
    llama_python: Annotated[
        str | None, typer.Option(help="A Python that has llama_cpp (else $SKIMP_PEERS_LLAMA).")
    ] = None,
    openvino_python: Annotated[
        str | None, typer.Option(help="A Python that has OpenVINO (else $SKIMP_PEERS_OPENVINO).")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Where exported models lie while they are timed (the system's default)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and random weights.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE")] = None,
) -> None:
    """Time one model in several engines, in turns, each in a process of its own."""
    try:
        output.check_file(json_file, "--json")
        load = _single(Workload.parse(workload))
        timing = Timing.plan(load, rounds, steps, turn)
        homes = {"llama": llama_python, "openvino": openvino_python}
        entries = roster.read(engines, homes)
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            bench = Bench(model, entries, timing, threads, seed, Path(scratch))
            document = bench.run()
        console = output.console(stderr=json_file == output.STDOUT)
        console.print(show.table(document))
        for line in show.remarks(document):
            console.print(line, soft_wrap=True, markup=False)
        if json_file == output.STDOUT:
            typer.echo(output.dump(document), nl=False)
        elif json_file is not None:
            output.write_text(json_file, output.dump(document), "--json")
    except (SkimpError, Out) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _single(workload: Workload) -> Workload:
    if workload.batch != 1:
        raise SkimpError(f"--workload: {workload} has {workload.batch} sequences; give one.")
    return workload


if __name__ == "__main__":
    typer.run(main)
