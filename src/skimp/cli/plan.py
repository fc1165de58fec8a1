"""`skimp plan`: choose what to leave out, or fit what was chosen by hand."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from skimp.cli import finding, options, output, parallel, search_options
from skimp.cli.common import (
    Run,
    check_keep,
    dtype_of,
    layer_list,
    read_plan,
    require_dense,
    with_exit,
)
from skimp.cli.planning import (
    DEFAULT_FILL,
    Wanted,
    by_hand,
    choose,
    describe,
    fit_plan,
    show,
    thinned,
)
from skimp.errors import SkimpError

_RULE, _HAND = "By a rule", "By hand"
_DEFAULT_RULE = "greedy"
HARMS = ("kl", "loss")


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
    out: options.PlanOut = None,
    fill: Annotated[
        str | None,
        typer.Option(
            "--fill",
            help="What stands in the gaps: zero, mean, linear:RANK or linear:full "
            f"[dim](default: {DEFAULT_FILL})[/].",
        ),
    ] = None,
    repair: Annotated[
        str | None,
        typer.Option(
            "--repair",
            metavar="RANK",
            help="Correct the output projections that are kept, at no cost later: none, a rank or "
            "full [dim](default: full where the fill is linear, else none)[/]. With --scope "
            "calibrated full corrects narrower FFs too.",
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
        int | None,
        typer.Option(
            "--keep-last",
            metavar="N",
            min=0,
            help="Last layers not to touch. Default: greedy keeps one in 10, other rules none.",
            rich_help_panel=_RULE,
        ),
    ] = None,
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
    experts: options.Keep = None,
    scope: options.Scope = "prompt",
    tune: options.Tune = False,
    refresh: options.Refresh = 0,
    exit: options.ExitFile = None,
    fit: Annotated[
        Path | None,
        typer.Option(
            "--fit",
            metavar="PLAN",
            help="Fit what this plan file needs fitted, in place unless --out is given.",
            rich_help_panel=_HAND,
        ),
    ] = None,
    budget: search_options.BudgetOption = None,
    search: search_options.SearchOption = False,
    costs: search_options.CostsOption = "measured",
    minutes: search_options.TimeOption = None,
    held_out: search_options.HeldOutOption = None,
    compare: search_options.CompareOption = False,
    workers: search_options.WorkersOption = None,
    ray: search_options.RayOption = None,
    state: search_options.StateOption = None,
    include: search_options.IncludeOption = None,
    limit: search_options.LimitOption = None,
    pick: search_options.PickOption = None,
    tensor_parallel: options.TensorParallel = 1,
    link: options.LinkText = None,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    stream: options.Stream = None,
    debug: options.Debug = False,
) -> None:
    """Choose what to leave out, fit what stands in its place, and write the plan.

    The text a plan is chosen on is never what its quality is reported on.

    [bold]Examples[/]

    skimp plan demo --drop-attention 10 --out plan.yaml --json plan.json
    skimp plan demo --rule last --drop-attention 10 --fill zero --out last.yaml
    skimp plan demo --attention 3,4,7 --layers 20-22 --fill linear:16 --out mine.yaml
    skimp plan demo --fit mine.yaml
    skimp plan demo --experts 0.5 --out half.yaml
    skimp plan demo --experts 0.5 --tune --refresh 16 --out tuned.yaml
    skimp plan demo --experts 0.75 --scope calibrated --out narrow.yaml
    skimp plan demo --budget "loss<=5%" --workload 512+128x1 --out best.yaml
    skimp plan demo --budget "speedup>=1.3x" --out fast.yaml --json fast.json
    skimp plan demo --budget "accuracy(piqa,arc_easy)>=-1" --out as_good.yaml
    skimp plan demo --pick 7 --state fast.search --out seven.yaml
    """
    del debug, rules
    from skimp.models.anatomy import Anatomy
    from skimp.workload import Workload

    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    asked = finding.Asked(
        budget=budget or [],
        search=search,
        costs=costs,
        minutes=minutes,
        workers=workers,
        ray=ray,
        state=state,
        rules=compare,
        held_out=held_out,
        pick=pick,
        include=include,
        limit=limit,
    )
    parallel.check(tensor_parallel, link)
    listed = {
        "attention": layer_list(attention, "--attention"),
        "ffn": layer_list(ffn, "--ffn"),
        "layers": layer_list(layers, "--layers"),
    }
    wanted = Wanted(
        rule=rule or _DEFAULT_RULE,
        drop_attention=drop_attention,
        drop_ffn=drop_ffn,
        drop_layers=drop_layers,
        keep_last=keep_last,
        harm=harm,
        fill=fill or DEFAULT_FILL,
        repair=repair,
        experts=experts,
        scope=scope,
        tune=tune,
        refresh=refresh,
    )
    counted = drop_attention + drop_ffn + drop_layers > 0 or rule is not None
    if asked.any:
        if tensor_parallel > 1:
            raise SkimpError(
                "--tensor-parallel: the search is for one device; look at the plan that it finds "
                "with `skimp inspect --plan PLAN --tensor-parallel N`."
            )
        named = any(listed.values()) or experts is not None or fit is not None or exit is not None
        _check_alone(wanted, named or counted, given=(fill, repair))
        _search(run, model, asked, workload, calibration, out, stream=stream)
        return
    finding.check_absent(asked)
    check_keep(experts, scope)
    if tune and scope != "prompt":
        raise SkimpError("--tune: it is for experts that prompts choose; leave --scope out.")
    if experts is None and (tune or refresh):
        raise SkimpError("--tune and --refresh: they are about --experts; give it too.")
    alone = experts is not None and not counted and fit is None
    named = alone or any(listed.values())
    mode = _mode(counted=counted, listed=named, fit=fit, fill=fill or repair)
    target = _target(out, fit)
    _check_words(wanted, by_rule=mode == "rule")
    work = Workload.parse(workload)
    drawn = read_plan(fit) if fit is not None else None
    _check_calibration(calibration)
    loaded = run.load(model, stream=stream)
    require_dense(loaded, "plan")
    dense = Anatomy.of(loaded.model)
    parallel.require(dense, tensor_parallel)
    if mode == "rule":
        made, facts = choose(run, loaded, wanted, calibration)
    else:
        drawn = drawn or by_hand(loaded, listed, wanted)
        drawn = thinned(drawn, wanted, dense)
        made, facts = fit_plan(run, loaded, drawn, calibration, tune=tune)
    made = with_exit(made, exit, dense)
    made.write(target)
    document = describe(run, loaded, made, facts, work)
    document["tensor_parallel"] = parallel.describe(
        run, dense, made, work, dtype_of(loaded.model), tensor_parallel, link
    )
    show(run, document, target)
    parallel.show(run, document["tensor_parallel"])
    run.finish(document)


def _check_alone(wanted: Wanted, chosen: bool, *, given: tuple[str | None, str | None]) -> None:
    """Refuse, beside a search, what it decides itself; else it would pass unseen."""
    fields = ("keep_last", "harm", "scope", "tune", "refresh")
    usual = Wanted("", 0, 0, 0)
    settings = any(getattr(wanted, name) != getattr(usual, name) for name in fields)
    if chosen or settings or any(each is not None for each in given):
        raise SkimpError(
            "--budget: the search chooses by itself; leave rules, layers, fills, repairs, experts "
            "and exits out."
        )


def _search(
    run: Run,
    model: str,
    asked: finding.Asked,
    workload: str,
    calibration: Path | None,
    out: Path | None,
    *,
    stream: bool | None,
) -> None:
    from skimp.workload import Workload

    budget = finding.check(asked)
    if out is not None:
        _target(out, None)
    if asked.pick is not None:
        finding.pick(run, asked, out)
        return
    work = Workload.parse(workload)
    finding.folder_of(asked, out)
    _check_calibration(calibration)
    loaded = run.load(model, stream=stream)
    require_dense(loaded, "plan")
    finding.search(run, loaded, asked, budget, work, calibration, out)


def _mode(*, counted: bool, listed: bool, fit: Path | None, fill: str | None) -> str:
    if counted + listed + (fit is not None) > 1:
        raise SkimpError(
            "choose one way: a rule (--drop-…), by hand (--attention, --ffn, --layers) or --fit."
        )
    if fit is not None and fill is not None:
        raise SkimpError("--fit: fill and repair are those in the plan file; edit them there.")
    if counted:
        return "rule"
    if listed:
        return "hand"
    if fit is not None:
        return "fit"
    raise SkimpError(
        "nothing to leave out: give --drop-attention, --drop-ffn or --drop-layers, name layers "
        "with --attention, --ffn or --layers, or give --experts."
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


def _check_words(wanted: Wanted, *, by_rule: bool) -> None:
    """Refuse an unknown rule, harm, fill or repair before the model is loaded."""
    from skimp.methods.drop.section import FillKind, parse_repair

    FillKind.parse(wanted.fill)
    parse_repair(wanted.repair or "none")
    if not by_rule:
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
