"""`skimp report`: one offline HTML file from what the other verbs wrote as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import skimp
from skimp.cli import options, output
from skimp.cli.common import Run
from skimp.errors import SkimpError

# Keys of which only that verb's documents hold one.
_MARKS = {"plan": ("calibration_loss", "search"), "eval": ("fidelity",), "bench": ("speedup",)}


def report(
    ctx: typer.Context,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="HTML file to write.", show_default=False),
    ],
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="JSON", help="What `skimp plan --json` wrote."),
    ] = None,
    eval_file: Annotated[
        Path | None,
        typer.Option("--eval", metavar="JSON", help="What `skimp eval --json` wrote."),
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option("--bench", metavar="JSON", help="What `skimp bench --json` wrote."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            metavar="NAME=JSON",
            help="The `eval` result of another plan, to be shown beside; may be repeated.",
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", metavar="JSON", help="A list of {prompt, dense, planned}."),
    ] = None,
    json_file: options.JsonFile = None,
    debug: options.Debug = False,
) -> None:
    """Make one HTML file that opens offline from the JSON files of other verbs.

    Each part may be missing; the report says so.

    [bold]Examples[/]

    skimp report --plan plan.json --eval eval.json --bench bench.json --out report.html
    skimp report --eval eval.json --compare last=eval_last.json --out report.html
    """
    del debug
    run = Run.start(ctx, json_file=json_file)
    output.check_file(out, "--out")
    if plan is None and eval_file is None and bench is None:
        raise SkimpError("nothing to report: give --plan, --eval or --bench.")
    found = {
        "plan": read_document(plan, "plan"),
        "eval": read_document(eval_file, "eval"),
        "bench": read_document(bench, "bench"),
    }
    evals = evaluations(found["eval"], compare or [])
    _check_model({**found, **{f"compare {name}": each for name, each in evals.items()}})
    _write(out, found, evals, _read_samples(samples))
    run.console.print(f"The report is in {out}.")
    run.finish(_document(run, out, found, list(evals)))


def _check_model(documents: dict[str, Any]) -> None:
    """Refuse results of several models, which a page would show as those of one."""
    first: tuple[str, Any] | None = None
    for role, document in documents.items():
        model = (document or {}).get("model")
        if not isinstance(model, dict) or not model.get("fingerprint"):
            continue
        if first is None:
            first = role, model
        elif model["fingerprint"] != first[1]["fingerprint"]:
            raise SkimpError(
                f"--{role}: it is about {model.get('source')}, but --{first[0]} about "
                f"{first[1].get('source')}, another model; give results of one."
            )


def _write(out: Path, found: dict[str, Any], evals: dict[str, Any], samples: list[Any]) -> None:
    from skimp.report.build import write
    from skimp.report.data import ReportData

    data = ReportData.from_documents(
        plan=found["plan"], evals=evals or None, bench=found["bench"], samples=samples
    )
    write(data, out)


def _document(run: Run, out: Path, found: dict[str, Any], names: list[str]) -> dict[str, Any]:
    first = next(document for document in found.values() if document is not None)
    shared = {key: first.get(key) for key in ("model", "plan", "seed", "machine")}
    parts = {name: document is not None for name, document in found.items()}
    return {
        "skimp": skimp.__version__,
        **shared,
        "command": run.command,
        "out": str(out),
        "parts": parts,
        "evaluations": names,
    }


def evaluations(own: dict[str, Any] | None, compare: list[str]) -> dict[str, Any]:
    """`{name: eval document}`, the plan's own first; documents of several plans are split."""
    found: dict[str, Any] = {}
    if own is not None:
        shared = {key: value for key, value in own.items() if key != "plans"}
        found["plan"] = shared
        several = own.get("plans")
        others = list(several.items())[1:] if isinstance(several, dict) else []
        found.update({name: {**shared, **part} for name, part in others if isinstance(part, dict)})
    for item in compare:
        name, _, file = item.partition("=")
        if not name or not file:
            raise SkimpError(f"--compare: {item!r} is not of the form NAME=JSON.")
        if name in found:
            raise SkimpError(f"--compare: the name {name!r} is taken; choose another.")
        found[name] = read_document(Path(file), "eval", option="--compare")
    return found


def read_document(path: Path | None, verb: str, *, option: str | None = None) -> Any:
    """The JSON document that `verb` wrote; None without a path.

    Raises:
        SkimpError: the file is unreadable, no JSON, or not a document of that verb.
    """
    if path is None:
        return None
    option = option or f"--{verb}"
    document = _read_json(path, option)
    if not isinstance(document, dict) or not isinstance(document.get("skimp"), str):
        raise SkimpError(f"{option}: {path} is not what `skimp {verb} --json` writes.")
    verbs = [name for name, marks in _MARKS.items() if any(mark in document for mark in marks)]
    if verb not in verbs:
        actual = next(iter(verbs), None)
        seems = f"; it looks like the result of `skimp {actual}`" if actual else ""
        raise SkimpError(f"{option}: {path} is not what `skimp {verb} --json` writes{seems}.")
    return document


def _read_samples(path: Path | None) -> list[Any]:
    if path is None:
        return []
    found = _read_json(path, "--samples")
    found = found.get("samples") if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise SkimpError(f"--samples: {path} is no list of {{prompt, dense, planned}}.")
    return found


def _read_json(path: Path, option: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SkimpError(f"{option}: there is no file {path}.") from None
    except OSError as error:
        raise SkimpError(f"{option}: {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise SkimpError(f"{option}: {path} is not JSON ({error}).") from None
