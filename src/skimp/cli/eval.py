"""`skimp eval`: quality of plans beside the dense model, on tasks and on text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import eval_tables, leaving, options, output
from skimp.cli.common import (
    Run,
    check_keep,
    layer_words,
    neuron_words,
    plan_names,
    read_plan,
    require_dense,
    with_exit,
    with_experts,
)
from skimp.cli.common import dropped_of as dropped
from skimp.cli.common import require_tokenizer as tokenizer_of
from skimp.cli.flocking import flocking_of
from skimp.cli.measuring import Measured, Scoring, measure
from skimp.errors import EvaluationError, SkimpError

if TYPE_CHECKING:
    from torch import Tensor

    from skimp.models.anatomy import Anatomy
    from skimp.models.load import Loaded
    from skimp.plan import Plan

# Far from the seeds that people calibrate with, so that text written anew is held out.
_HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class Text:
    """Held-out token documents (each [tokens]) and what they are, in words."""

    documents: Sequence[Tensor]
    source: str


def evaluate(
    ctx: typer.Context,
    model: options.Model,
    plan: options.PlanFiles = None,
    experts: options.Keep = None,
    exit: options.ExitFile = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="TASKS",
            help="Names that lm-eval knows, a folder of task YAMLs, one YAML file, or FOLDER:NAME; "
            "several with commas.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="The first N items of each task only."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Held-out text to compare predictions on; by default the dense model writes it "
            "afresh, after other openings than calibration and with another seed.",
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option("--tokens", metavar="N", min=0, help="Tokens of text; 0 reads none."),
    ] = 4096,
    window: Annotated[
        int, typer.Option("--window", metavar="N", min=2, help="Tokens of one document.")
    ] = 256,
    state: options.State = None,
    fresh: options.Fresh = False,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Measure what plans do to quality, item by item beside the dense model.

    Intervals are paired and hold at 95%. What a plan was chosen on is never
    what it is judged on. Without a plan, the dense model alone is measured.
    Each task is kept as soon as it is scored, dense and planned: after an
    interrupt, the same command goes on where it stopped.

    [bold]Examples[/]

    skimp eval demo --plan plan.yaml --json eval.json
    skimp eval demo --plan plan.yaml --tasks piqa,arc_easy --limit 200
    skimp eval demo --plan greedy.yaml --plan last.yaml --tasks my_tasks/ --text held_out.txt
    skimp eval demo --experts 0.5 --tasks piqa --tokens 0
    """
    del debug
    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    if not tasks and tokens == 0:
        raise SkimpError("nothing to evaluate: give --tasks, or --tokens above 0.")
    if text is not None and not text.is_file():
        raise EvaluationError(f"--text: there is no file {text}.")
    from skimp.measure.shelf import default_folder

    folder = state or default_folder("eval")
    if tasks:
        output.check_folder(folder, "--state")
    check_keep(experts)
    plans = dict(zip(plan_names(plan or []), map(read_plan, plan or []), strict=True))
    check_tasks(tasks, seed)
    loaded = run.load(model)
    if plans or experts is not None or exit is not None:
        require_dense(loaded, "eval --plan")
    if experts is not None or exit is not None:
        from skimp.models.anatomy import Anatomy

        plans = _with_more(plans, experts, exit, Anatomy.of(loaded.model))
    held_out = None
    if tokens:
        held_out = held_out_text(run, loaded, text, tokens, window, list(plans.values()))
    scoring = Scoring.of(run, loaded, tasks or [], limit, folder, fresh)
    parts = measure(scoring, plans, held_out)
    document = describe(run, loaded, plans, parts, held_out, limit)
    if held_out is not None:
        first = next(iter(plans.values()), None)
        document |= flocking_of(run, loaded, first, held_out.documents)
    show(run, parts, plans, held_out)
    run.finish(document)


def _with_more(
    plans: Mapping[str, Plan], keep: float | None, exit: Path | None, anatomy: Anatomy
) -> dict[str, Plan]:
    """The plans with `--experts KEEP` and `--exit FILE`; those alone if there are none."""
    wanted: Mapping[str, Plan | None] = plans or {"exit" if keep is None else "experts": None}
    made = {
        name: with_exit(with_experts(plan, keep, anatomy), exit, anatomy)
        for name, plan in wanted.items()
    }
    return {name: plan for name, plan in made.items() if plan is not None}


def held_out_text(
    run: Run, loaded: Loaded, file: Path | None, tokens: int, window: int, plans: Sequence[Plan]
) -> Text:
    """Documents of at most `window` tokens, about `tokens` in all, that no plan was chosen on.

    Raises:
        EvaluationError: the file cannot be read or is too short.
    """
    tokenizer = tokenizer_of(loaded, "`skimp eval`")
    if file is not None:
        from skimp.measure.fidelity import windows

        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EvaluationError(f"--text: {file} cannot be read as UTF-8 ({error}).") from None
        if file.name in {used.get("source") for used in _calibrations(plans)}:
            run.progress.note(f"A plan was chosen on a file called {file.name}: is this another?")
        return Text(windows(content, tokenizer, min(window, tokens), tokens), file.name)
    from skimp.cli import held_out

    seeds = {used.get("seed") for used in _calibrations(plans)}
    seed = next(s for s in range(run.seed + _HELD_OUT_SEED, 2**63) if s not in seeds)
    run.progress.note(f"No --text: the dense model writes held-out text with seed {seed}.")
    documents = held_out.write(
        loaded.model,
        tokenizer,
        tokens=tokens,
        window=window,
        seed=seed,
        progress=run.progress,
    )
    source = (
        f"text that the dense model wrote after {len(held_out.OPENINGS)} openings kept for this"
    )
    return Text(documents, f"{source}, seed {seed}")


def describe(
    run: Run,
    loaded: Loaded,
    plans: Mapping[str, Plan],
    parts: Mapping[str, Measured],
    text: Text | None,
    limit: int | None,
) -> dict[str, Any]:
    """The verb's document: of the first plan, with every plan by name where there are several."""
    from skimp.models.anatomy import Anatomy

    first = next(iter(plans.values()), None)
    document = {
        **run.loaded_header(loaded, Anatomy.of(loaded.model), first or loaded.plan),
        **next(iter(parts.values())).to_dict(first is not None),
        "held_out": text.source if text is not None else None,
        "limit": limit,
    }
    if len(plans) > 1:
        document["plans"] = {
            name: {"plan": plan.to_dict(), **parts[name].to_dict(True)}
            for name, plan in plans.items()
        }
    return document


def show(
    run: Run, parts: Mapping[str, Measured], plans: Mapping[str, Plan], text: Text | None
) -> None:
    """Print tasks and fidelity, a table for each plan."""
    for name, part in parts.items():
        if name:
            run.console.print(f"[bold]{name}[/]: {_left_out(plans[name])}")
        if part.dense is not None:
            run.console.print(eval_tables.tasks_table(part))
        if part.fidelity is not None and text is not None:
            run.console.print(eval_tables.fidelity_table(part.fidelity, text, planned=bool(name)))
        if part.exits is not None:
            leaving.show(run, part.exits)


def _left_out(plan: Plan) -> str:
    from skimp.methods.registry import sections

    gone = [f"{kind} {layer_words(layers)}" for kind, layers in dropped(plan).items() if layers]
    found = sections(plan)
    experts, exits = found.get("experts"), found.get("exit")
    said = [f"without {', '.join(gone)}"] if gone else []
    if experts is not None:
        said.append(f"FF neurons kept: {neuron_words(**experts.to_dict())}")
    if exits is not None and exits.probe:
        said.append(f"tokens may leave after layers {layer_words(list(exits.probe))}")
    return "; ".join(said) or "without nothing"


def check_tasks(tasks: list[str] | None, seed: int) -> None:
    """Refuse unknown tasks before the model is loaded; they are built again for each run."""
    if tasks:
        from skimp.measure.tasks import load_tasks

        load_tasks(tasks, seed)


def _calibrations(plans: Sequence[Plan]) -> list[Mapping[str, Any]]:
    found = (plan.evidence.get("calibration") for plan in plans)
    return [used for used in found if isinstance(used, Mapping)]
