"""`skimp plan`: choose what to leave out, or fit what was chosen by hand."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import options, output
from skimp.cli.common import (
    Run,
    dropped_of,
    layer_list,
    layer_words,
    read_plan,
    require_dense,
    require_tokenizer,
)
from skimp.errors import SkimpError
from skimp.report.numbers import count, seconds, significant, times

if TYPE_CHECKING:
    from skimp.calibration.text import Calibration
    from skimp.models.load import Loaded
    from skimp.plan import Plan
    from skimp.workload import Workload

_RULE, _HAND = "By a rule", "By hand"
_DEFAULT_RULE, _DEFAULT_FILL = "greedy", "linear:16"
HARMS = ("kl", "loss")


@dataclass(frozen=True)
class Wanted:
    """What the command line asks a rule for."""

    rule: str
    drop_attention: int
    drop_ffn: int
    drop_layers: int
    keep_last: int
    harm: str


def _list_rules(wanted: bool) -> None:
    if wanted:
        made = output.table("Rules", "rule", "what it does")
        for name, rule in _rules().items():
            made.add_row(name, rule.summary)
        output.console().print(made)
        raise typer.Exit


def _count(name: str, what: str) -> Any:
    return typer.Option(f"--drop-{name}", metavar="N", min=0, help=what, rich_help_panel=_RULE)


def _layers(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="LIST", help=what, rich_help_panel=_HAND)


def plan(
    ctx: typer.Context,
    model: options.Model,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PLAN", help="Plan file to write; replaces an old one."),
    ] = None,
    fill: Annotated[
        str | None,
        typer.Option(
            "--fill",
            help="What stands in the gaps: zero, mean, linear:RANK or linear:full "
            f"[dim](default: {_DEFAULT_FILL})[/].",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Text to choose and fit on; by default the model writes its own.",
        ),
    ] = None,
    workload: options.WorkloadText = "512+128x1",
    rule: Annotated[
        str | None,
        typer.Option(
            "--rule",
            help=f"How to choose; --rules lists them [dim](default: {_DEFAULT_RULE})[/].",
            rich_help_panel=_RULE,
        ),
    ] = None,
    drop_attention: Annotated[int, _count("attention", "Attention sublayers to leave out.")] = 0,
    drop_ffn: Annotated[int, _count("ffn", "FF sublayers to leave out.")] = 0,
    drop_layers: Annotated[int, _count("layers", "Whole layers to leave out.")] = 0,
    keep_last: Annotated[
        int,
        typer.Option(
            "--keep-last",
            metavar="N",
            min=0,
            help="Last layers not to touch.",
            rich_help_panel=_RULE,
        ),
    ] = 0,
    harm: Annotated[
        str,
        typer.Option(
            "--harm",
            help="What the rule keeps small: kl (distance from the dense model) or loss.",
            rich_help_panel=_RULE,
        ),
    ] = "kl",
    rules: Annotated[
        bool,
        typer.Option(
            "--rules",
            callback=_list_rules,
            is_eager=True,
            help="List the rules and exit.",
            rich_help_panel=_RULE,
        ),
    ] = False,
    attention: Annotated[
        str | None, _layers("attention", "Layers whose attention goes: 3,4,7 or 20-23.")
    ] = None,
    ffn: Annotated[str | None, _layers("ffn", "Layers whose FF goes.")] = None,
    layers: Annotated[str | None, _layers("layers", "Layers that go whole.")] = None,
    fit: Annotated[
        Path | None,
        typer.Option(
            "--fit",
            metavar="PLAN",
            help="Fit the fills of this plan file, in place unless --out is given.",
            rich_help_panel=_HAND,
        ),
    ] = None,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Choose what to leave out, fit what stands in its place, and write the plan.

    The text a plan is chosen on is never what its quality is reported on.

    [bold]Examples[/]

    skimp plan demo --drop-attention 10 --out plan.yaml --json plan.json
    skimp plan demo --rule last --drop-attention 10 --fill zero --out last.yaml
    skimp plan demo --attention 3,4,7 --layers 20-22 --fill linear:16 --out mine.yaml
    skimp plan demo --fit mine.yaml
    """
    del debug, rules
    from skimp.workload import Workload

    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    by_hand = {
        "attention": layer_list(attention, "--attention"),
        "ffn": layer_list(ffn, "--ffn"),
        "layers": layer_list(layers, "--layers"),
    }
    wanted = Wanted(rule or _DEFAULT_RULE, drop_attention, drop_ffn, drop_layers, keep_last, harm)
    counted = drop_attention + drop_ffn + drop_layers > 0 or rule is not None
    mode = _mode(counted=counted, listed=any(by_hand.values()), fit=fit, fill=fill)
    target = _target(out, fit)
    _check_words(wanted if mode == "rule" else None, fill)
    work = Workload.parse(workload)
    drawn = read_plan(fit) if fit is not None else None
    _check_calibration(calibration)
    loaded = run.load(model)
    require_dense(loaded, "plan")
    if mode == "rule":
        made, facts = choose(run, loaded, wanted, fill or _DEFAULT_FILL, calibration)
    else:
        drawn = drawn or _by_hand(loaded, by_hand, fill or _DEFAULT_FILL)
        made, facts = fit_plan(run, loaded, drawn, calibration)
    made.write(target)
    document = describe(run, loaded, made, facts, work)
    show(run, document, target)
    run.finish(document)


def choose(
    run: Run, loaded: Loaded, wanted: Wanted, fill: str, calibration: Path | Calibration | None
) -> tuple[Plan, dict[str, Any]]:
    """Let a rule choose; returns the fitted plan and the document's keys about the choice."""
    from skimp.finder.choose import choose as find

    choice = find(
        loaded.model,
        loaded.tokenizer,
        rule=wanted.rule,
        drop_attention=wanted.drop_attention,
        drop_ffn=wanted.drop_ffn,
        drop_layers=wanted.drop_layers,
        fill=fill,
        keep_last=wanted.keep_last,
        harm=wanted.harm,
        calibration=_calibrate(run, loaded, calibration),
        seed=run.seed,
        progress=run.progress,
    )
    path = [{"kind": kind, "layer": layer, "harm": harm} for kind, layer, harm in choice.path]
    return choice.plan, {
        "rule": wanted.rule,
        "harm": wanted.harm,
        "calibration_loss": choice.calibration_loss,
        "seconds": choice.seconds,
        "path": path,
        "importance": {wanted.rule: choice.importance} if choice.importance else {},
        "calibration": choice.calibration.to_dict() if choice.calibration is not None else None,
    }


def fit_plan(
    run: Run, loaded: Loaded, plan: Plan, calibration: Path | None
) -> tuple[Plan, dict[str, Any]]:
    """Fit a plan written by hand; returns it and the document's keys."""
    from skimp.methods.registry import check, methods
    from skimp.models.anatomy import Anatomy

    start = time.perf_counter()
    plan = replace(plan, values={})  # old values may be those of other layers
    found = check(plan, Anatomy.of(loaded.model))
    text = None
    if any(methods()[name].needs_values(section) for name, section in found.items()):
        from skimp.methods.fit import fit

        tokenizer = require_tokenizer(loaded, "fitting a fill")
        text = _calibrate(run, loaded, calibration, always=True)
        plan = fit(
            loaded.model,
            tokenizer,
            plan,
            calibration=text,
            seed=run.seed,
            progress=run.progress,
        )
    return plan, {
        "rule": None,
        "harm": None,
        "calibration_loss": None,
        "seconds": time.perf_counter() - start,
        "path": [],
        "importance": {},
        "calibration": text.to_dict() if text is not None else None,
    }


def describe(
    run: Run, loaded: Loaded, plan: Plan, facts: dict[str, Any], work: Workload
) -> dict[str, Any]:
    """The verb's document."""
    from skimp.measure.cost import byte_bound
    from skimp.methods.registry import reduce, sections
    from skimp.models.anatomy import Anatomy

    anatomy = Anatomy.of(loaded.model)
    section = sections(plan).get("drop")
    return {
        **run.loaded_header(loaded, anatomy, plan),
        "dropped": dropped_of(plan),
        "fill": str(section.fill) if section is not None else None,
        **facts,
        "workload": str(work),
        "byte_bound": {"decode": byte_bound(anatomy, reduce(plan, anatomy), work)},
    }


def show(run: Run, document: Mapping[str, Any], target: Path) -> None:
    """Print what was chosen and how."""
    console = run.console
    if document["path"]:
        made = output.table(f"What {document['rule']} left out", ">step", "kind", ">layer", ">harm")
        for number, step in enumerate(document["path"], 1):
            made.add_row(
                str(number), str(step["kind"]), str(step["layer"]), significant(step["harm"], 4)
            )
        console.print(made)
    made = output.table("Plan", "", "")
    for kind, layers in document["dropped"].items():
        made.add_row(f"{kind} left out", f"{len(layers)}: layers {layer_words(layers)}")
    made.add_row("fill", str(document["fill"]))
    if document["calibration_loss"] is not None:
        made.add_row("calibration loss", significant(document["calibration_loss"], 4))
    text = document["calibration"]
    if text is not None:
        made.add_row("calibration", f"{text.get('source')}, {count(text.get('tokens'))} tokens")
    made.add_row("found in", seconds(document["seconds"]))
    bound = times(document["byte_bound"]["decode"])
    made.add_row("decode byte bound", f"{bound} at workload {document['workload']}")
    console.print(made)
    console.print(f"The plan is in {target}.")


def _mode(*, counted: bool, listed: bool, fit: Path | None, fill: str | None) -> str:
    if counted + listed + (fit is not None) > 1:
        raise SkimpError(
            "choose one way: a rule (--drop-…), by hand (--attention, --ffn, --layers) or --fit."
        )
    if fit is not None and fill is not None:
        raise SkimpError("--fill: with --fit, the fill is the one in the plan file.")
    if counted:
        return "rule"
    if listed:
        return "hand"
    if fit is not None:
        return "fit"
    raise SkimpError(
        "nothing to leave out: give --drop-attention, --drop-ffn or --drop-layers, or name layers "
        "with --attention, --ffn or --layers."
    )


def _target(out: Path | None, fit: Path | None) -> Path:
    target = out if out is not None else fit
    if target is None:
        raise SkimpError("--out: name the plan file to write, for example --out plan.yaml.")
    if target.is_dir() and out is None:
        target = target / "plan.yaml"
    if target.suffix in (".safetensors", ".json"):
        raise SkimpError(f"--out: {target} should end in .yaml; the fills go in a file beside it.")
    output.check_file(target, "--out")
    return target


def _check_words(wanted: Wanted | None, fill: str | None) -> None:
    """Refuse an unknown rule, harm or fill before the model is loaded."""
    from skimp.methods.drop import FillKind

    FillKind.parse(fill or _DEFAULT_FILL)
    if wanted is None:
        return
    if not wanted.drop_attention + wanted.drop_ffn + wanted.drop_layers:
        raise SkimpError(
            "nothing to leave out: give --drop-attention, --drop-ffn or --drop-layers."
        )
    if wanted.harm not in HARMS:
        raise SkimpError(f"--harm: {wanted.harm!r} is none of {', '.join(HARMS)}.")
    known = _rules()
    if wanted.rule not in known:
        near = difflib.get_close_matches(wanted.rule, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        raise SkimpError(f"--rule: there is no rule {wanted.rule!r}; {hint}")


def _check_calibration(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise SkimpError(f"--calibration: there is no file {path}.")


def _rules() -> Mapping[str, Any]:
    from skimp.finder.rules import rules

    return rules()


def _by_hand(loaded: Loaded, layers: Mapping[str, list[int]], fill: str) -> Plan:
    from skimp.models.anatomy import Anatomy
    from skimp.plan import Plan

    section = {name: indices for name, indices in layers.items() if indices}
    return Plan.empty(Anatomy.of(loaded.model)).with_section("drop", {**section, "fill": fill})


def _calibrate(
    run: Run, loaded: Loaded, text: Path | Calibration | None, *, always: bool = False
) -> Calibration | None:
    """Calibration text from a file; without one None, or self-written text if `always`."""
    from skimp.calibration.text import calibrate

    if not isinstance(text, Path | None) or (text is None and not always):
        return text
    tokenizer = require_tokenizer(loaded, "calibration")
    return calibrate(loaded.model, tokenizer, text=text, seed=run.seed, progress=run.progress)
