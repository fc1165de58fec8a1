"""`skimp fit-exit`: learn where tokens may leave the model early, and how sure that must be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from skimp.cli import options, output
from skimp.cli.common import (
    Run,
    layer_list,
    layer_words,
    read_plan,
    require_dense,
    require_tokenizer,
)
from skimp.cli.figures import count, seconds, share, times
from skimp.errors import SkimpError

if TYPE_CHECKING:
    from skimp.methods.exit.fit import Found
    from skimp.methods.exit.section import Exit
    from skimp.plan import Plan
    from skimp.workload import Workload


def fit_exit(
    ctx: typer.Context,
    model: options.Model,
    out: options.PlanOut = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Text to learn from; by default the model writes its own.",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="PLAN", help="What else is left out; exits are fitted on what stays."
        ),
    ] = None,
    agreement: Annotated[
        float | None,
        typer.Option(
            "--agreement",
            metavar="SHARE",
            help="Share of tokens promised to be the full model's; 0.99, 0.95 and 0.9 are always "
            "calibrated too [dim](default: 0.99)[/].",
        ),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            help="What scores a probe: svm, crf (all probes so far) or threshold (the bare gap).",
        ),
    ] = "svm",
    probe: Annotated[
        str | None,
        typer.Option(
            "--probe", metavar="LIST", help="Layers to probe: 12,16; by default those that pay."
        ),
    ] = None,
    translator: Annotated[
        str,
        typer.Option(
            "--translator",
            help="What brings states closer to the final one: plain, full or a rank.",
        ),
    ] = "full",
    candidates: Annotated[
        int | None,
        typer.Option(
            "--candidates",
            metavar="K",
            min=0,
            help="Rows of the head that a probe reads, 0 for all; by default as many as pay.",
        ),
    ] = None,
    screen: Annotated[
        int | None,
        typer.Option(
            "--screen",
            metavar="N",
            min=0,
            help="Kinds of states with candidates of their own [dim](default: 64)[/]; 0: the full "
            "head shortlists at the first probe.",
        ),
    ] = None,
    workload: options.WorkloadText = "512+128x1",
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Learn where tokens may leave early, and calibrate how sure a probe must be.

    Part of the text fits, part trains, and part, whole documents that nothing
    else saw, says how often an early token is the full model's: the agreement
    holds with 95% confidence. Where no probe pays, the plan has none and says
    why.

    [bold]Examples[/]

    skimp fit-exit demo --out exit.yaml
    skimp fit-exit demo --data text.txt --agreement 0.95 --out exit.yaml
    skimp fit-exit demo --plan plan.yaml --rule crf --probe 20,24,29 --out both.yaml
    skimp generate demo "Why is the sky blue?" --exit exit.yaml
    """
    del debug
    from skimp.calibration.text import calibrate
    from skimp.methods.exit.fit import fit_exit as fit
    from skimp.models.anatomy import Anatomy
    from skimp.plan import Plan
    from skimp.workload import Workload

    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    target = _target(out)
    work = Workload.parse(workload)
    probed = layer_list(probe, "--probe")
    section = _section(rule, translator, agreement, candidates, screen)
    if data is not None and not data.is_file():
        raise SkimpError(f"--data: there is no file {data}.")
    other = read_plan(plan) if plan is not None else None
    loaded = run.load(model)
    require_dense(loaded, "fit-exit")
    tokenizer = require_tokenizer(loaded, "`skimp fit-exit`")
    start = time.perf_counter()
    anatomy = Anatomy.of(loaded.model)
    text = calibrate(loaded.model, tokenizer, text=data, seed=run.seed, progress=run.progress)
    made, found = fit(
        loaded.model,
        other or Plan.empty(anatomy),
        text,
        section,
        probe=probed or None,
        candidates=candidates,
        workload=work,
        progress=run.progress,
    )
    made.write(target)
    document = {
        **run.loaded_header(loaded, anatomy, made),
        **_describe(made, found, work, time.perf_counter() - start),
    }
    _show(run, document, target)
    run.finish(document)


def _target(out: Path | None) -> Path:
    if out is None:
        raise SkimpError("--out: name the plan file to write, for example --out exit.yaml.")
    if out.suffix in (".safetensors", ".json"):
        raise SkimpError(f"--out: {out} should end in .yaml; fitted values go in a file beside it.")
    output.check_file(out, "--out")
    return out


def _section(
    rule: str,
    translator: str,
    agreement: float | None,
    candidates: int | None,
    screen: int | None,
) -> Exit:
    """The section asked for, its probes and candidates aside; SkimpError names a bad option."""
    from skimp.methods.exit.screen import KINDS
    from skimp.methods.exit.section import Exit, Rule, parse_translator

    known: dict[str, Rule] = {name: name for name in get_args(Rule)}
    if rule not in known:
        raise SkimpError(f"--rule: {rule!r} is none of {', '.join(known)}.")
    if agreement is not None and not 0 < agreement < 1:
        raise SkimpError(f"--agreement: {agreement} is no share above 0 and below 1.")
    if candidates == 1:
        raise SkimpError("--candidates: a gap needs at least 2 of them; give 0 for all tokens.")
    if screen == 0 and candidates is None:
        raise SkimpError("--screen: with 0 kinds say how many --candidates the head shortlists.")
    return Exit(
        rule=known[rule],
        translator=parse_translator(translator),
        screen=KINDS if screen is None else screen,
        agreement=agreement,
    )


def _describe(plan: Plan, found: Found, work: Workload, spent: float) -> dict[str, Any]:
    return {
        "exit": plan.sections["exit"],
        **found.to_dict(),
        "calibration": plan.evidence["exit"]["calibration"],
        "workload": str(work),
        "seconds": spent,
    }


def _show(run: Run, document: Mapping[str, Any], target: Path) -> None:
    console, section = run.console, document["exit"]
    made = output.table("Exits", "", "")
    made.add_row("probed", layer_words(section["probe"]))
    made.add_row("rule", section["rule"])
    made.add_row("translator", str(section["translator"]))
    rows = section["candidates"]
    made.add_row("rows of the head a probe reads", count(rows) if rows else "all")
    text = document["calibration"]
    made.add_row("text", f"{text['source']}, {count(text['tokens'])} tokens")
    made.add_row("found in", seconds(document["seconds"]))
    console.print(made)
    if document["levels"]:
        console.print(_levels(document))
        console.print(
            "The speed is what bytes and timed probes let expect; `skimp bench --exit` measures it."
        )
    if document["reason"]:
        console.print(f"No layer is probed: {document['reason']}.")
    console.print(f"The plan is in {target}.")


def _levels(document: Mapping[str, Any]) -> Any:
    columns = (">promised", "way", ">seen", ">at least", ">exits", ">layers left out", ">speed")
    made = output.table(f"At workload {document['workload']}", *columns)
    plain = {each["agreement"]: each for each in document["plain"]}
    for level in document["levels"]:
        pairs = (("fitted", level), ("as published", plain.get(level["agreement"])))
        for name, each in pairs:
            if each is not None:
                made.add_row(
                    share(each["agreement"]),
                    name,
                    share(each["seen"]),
                    share(each["at_least"]),
                    share(sum(each["exits"])),
                    share(each["left_out"]),
                    times(each["speedup"]),
                )
    return made
