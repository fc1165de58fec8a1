"""`skimp demo`: the main job from end to end on a small real model, in a few minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skimp.cli import apply as apply_verb
from skimp.cli import bench as bench_verb
from skimp.cli import eval as eval_verb
from skimp.cli import figures as numbers
from skimp.cli import inspect as inspect_verb
from skimp.cli import options, output, planning
from skimp.cli.common import Run
from skimp.cli.measuring import Scoring, measure

if TYPE_CHECKING:
    from skimp.models.load import Loaded
    from skimp.plan import Plan

MODEL, DROP, FILL = "demo", 10, "linear:16"
BUDGET = 240  # s, on two cores
TEXT, QUICK_TEXT = 8_000, 4_000  # tokens of calibration text
PROMPTS = (
    "Why is the sky blue? Answer in one sentence.",
    "Write two sentences about a lighthouse keeper who finds a letter.",
    "List three things to check before a long bicycle ride.",
)


@dataclass(frozen=True)
class Effort:
    """How much is measured: tokens of text and of each sample, and what is timed."""

    tokens: int
    window: int
    new_tokens: int
    workload: str
    rounds: int
    steps: int


FULL = Effort(4096, 256, 48, "256+64x1", 9, 32)
SHORT = Effort(2048, 256, 48, "128+32x1", 6, 16)
QUICK = Effort(512, 128, 24, "64+16x1", 6, 8)


@dataclass
class Clock:
    """Seconds of each stage, and what is left of the budget."""

    budget: float = BUDGET
    stages: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def stage(self, run: Run, name: str) -> Iterator[None]:
        """Time one stage and say that it begins."""
        begun = time.monotonic()
        run.console.rule(f"[bold]{name}", align="left")
        yield
        self.stages[name] = time.monotonic() - begun

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.started)

    def effort(self, quick: bool) -> Effort:
        """What can still be measured in the time that is left."""
        if quick or self.left < 45:
            return QUICK
        return FULL if self.left > 120 else SHORT


def demo(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for everything it writes.")
    ] = Path("demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Less text and fewer rounds: wider intervals.")
    ] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="TASKS",
            help="Score these tasks too, as `skimp eval` does; takes longer.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Items of each task.")
    ] = 100,
    json_file: options.JsonFile = None,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Do the main job on a small real model: inspect, plan, measure, apply, report.

    Leaves out 10 of the 30 attention sublayers of SmolLM2-135M, chosen greedily
    on text that the model writes itself, and compares that with leaving out the
    last 10 (Tyukin et al., 2024). Needs no network; about four minutes on two
    cores, and the first time a minute more to unpack the model.

    [bold]Examples[/]

    skimp demo
    skimp demo --quick --out /tmp/demo
    skimp demo --tasks piqa,arc_easy --limit 200
    """
    del debug
    run = Run.start(
        ctx, json_file=json_file, seed=seed, device=device, dtype=dtype, threads=threads
    )
    output.check_folder(out, "--out")
    apply_verb.check_target(out / "model", force=True)
    if tasks:
        eval_verb.check_tasks(tasks, seed)
    loaded = run.load(MODEL)
    clock = Clock()
    with clock.stage(run, "What the model is made of"):
        _inspect(run, loaded, out)
    with clock.stage(run, "What it can leave out"):
        plans, chosen = _choose(run, loaded, out, quick)
    effort = clock.effort(quick)
    with clock.stage(run, "What was lost"):
        evals = _evaluate(run, loaded, plans, out, effort, tasks or [], limit)
    with clock.stage(run, "What was won"):
        bench = _bench(run, loaded, plans["plan"], out, effort)
    with clock.stage(run, "How it writes"):
        samples = _samples(run, loaded, plans["plan"], out, effort)
    with clock.stage(run, "The smaller model"):
        _apply(run, loaded, plans["plan"], out)
    _report(out, chosen, evals, bench, samples)
    run.console.rule("[bold]Summary", align="left")
    _summary(run, plans, evals, bench, chosen)
    _where(run, out, clock)
    run.finish(_document(chosen, evals, bench, clock))


def _inspect(run: Run, loaded: Loaded, out: Path) -> None:
    from skimp.cli.common import dtype_of
    from skimp.models.anatomy import Anatomy
    from skimp.workload import Workload

    anatomy, work = Anatomy.of(loaded.model), Workload.parse(FULL.workload)
    inspect_verb.show(run, anatomy, None, None, work)
    header = run.header(loaded.source, anatomy, dtype_of(loaded.model), None)
    _save(out / "inspect.json", {**header, **inspect_verb.describe(anatomy, work), "planned": None})


def _choose(
    run: Run, loaded: Loaded, out: Path, quick: bool
) -> tuple[dict[str, Plan], dict[str, Any]]:
    """The greedy plan and the `last` one, and the greedy choice's document."""
    from skimp.workload import Workload

    work = Workload.parse(FULL.workload)
    # As published, `last` puts nothing in the gaps.
    last = planning.Wanted("last", DROP, 0, 0, fill="zero")
    plans = {"last": planning.choose(run, loaded, last, None)[0]}
    greedy = planning.Wanted("greedy", DROP, 0, 0, fill=FILL)
    begun = time.monotonic()
    text = _some_text(run, loaded, quick)
    plan, facts = planning.choose(run, loaded, greedy, text)
    facts["seconds"] = time.monotonic() - begun
    plans = {"plan": plan, **plans}
    plan.write(out / "plan.yaml")
    plans["last"].write(out / "last.yaml")
    document = planning.describe(run, loaded, plan, facts, work)
    _save(out / "plan.json", document)
    planning.show(run, document, out / "plan.yaml")
    return plans, document


def _some_text(run: Run, loaded: Loaded, quick: bool) -> Any:
    """Part of the usual calibration text, of every kind: all of it takes too long for a demo."""
    from dataclasses import replace

    from skimp.calibration.text import Sampling, calibrate

    text = calibrate(
        loaded.model,
        loaded.tokenizer,
        seed=run.seed,
        sampling=Sampling(new_tokens=16 if quick else 32),
        progress=run.progress,
    )
    every = -(-text.tokens // (QUICK_TEXT if quick else TEXT))
    source = f"{text.source}, every {every}th of them" if every > 1 else text.source
    return replace(
        text, documents=text.documents[::every], kinds=text.kinds[::every], source=source
    )


def _evaluate(
    run: Run,
    loaded: Loaded,
    plans: dict[str, Plan],
    out: Path,
    effort: Effort,
    tasks: list[str],
    limit: int,
) -> dict[str, Any]:
    """`{plan, last}`: an `eval` document each."""
    from skimp.measure.shelf import default_folder

    text = eval_verb.held_out_text(
        run, loaded, None, effort.tokens, effort.window, list(plans.values())
    )
    scoring = Scoring.of(run, loaded, tasks, limit, default_folder("eval"), False)
    parts = measure(scoring, plans, text)
    eval_verb.show(run, parts, plans, text)
    documents = {}
    for name, plan in plans.items():
        documents[name] = eval_verb.describe(
            run, loaded, {name: plan}, {name: parts[name]}, text, limit if tasks else None
        )
        _save(out / ("eval.json" if name == "plan" else f"eval_{name}.json"), documents[name])
    return documents


def _bench(run: Run, loaded: Loaded, plan: Plan, out: Path, effort: Effort) -> dict[str, Any]:
    from skimp.workload import Workload

    work = Workload.parse(effort.workload)
    document = bench_verb.measure(run, loaded, plan, work, rounds=effort.rounds, steps=effort.steps)
    _save(out / "bench.json", document)
    bench_verb.show(run, document)
    return document


def _samples(
    run: Run, loaded: Loaded, plan: Plan, out: Path, effort: Effort
) -> list[dict[str, str]]:
    sides: dict[str, list[str]] = {}
    for name, carried in (("dense", None), ("planned", plan)):
        label = f"writing, {name}"
        sides[name] = _continuations(run, loaded, carried, label, effort.new_tokens)
    rows = zip(PROMPTS, sides["dense"], sides["planned"], strict=True)
    found = [{"prompt": p, "dense": dense, "planned": planned} for p, dense, planned in rows]
    _save(out / "samples.json", {"samples": found})
    made = output.table(None, "prompt", "dense", "planned")
    for row in found:
        made.add_row(row["prompt"], row["dense"].strip(), row["planned"].strip())
        made.add_section()
    run.console.print(made)
    return found


def _continuations(run: Run, loaded: Loaded, plan: Plan | None, label: str, new: int) -> list[str]:
    from skimp.cli.prompts import encode
    from skimp.engine import Engine

    engine, found = Engine(loaded.model, plan), []
    with run.progress.task(label, len(PROMPTS)) as step:
        for prompt in PROMPTS:
            ids = encode(loaded.tokenizer, prompt, chat=None)
            (answer,) = engine.generate([ids], new, tokenizer=loaded.tokenizer)
            found.append(answer.text or "")
            step()
    return found


def _apply(run: Run, loaded: Loaded, plan: Plan, out: Path) -> None:
    document = apply_verb.write(run, loaded, plan, out / "model", force=True)
    apply_verb.show(run, document)
    _save(out / "apply.json", document)


def _report(
    out: Path,
    chosen: dict[str, Any],
    evals: dict[str, Any],
    bench: dict[str, Any],
    samples: list[dict[str, str]],
) -> None:
    from skimp.report.build import write
    from skimp.report.data import ReportData

    plain = {name: output.plain(document) for name, document in evals.items()}
    data = ReportData.from_documents(
        plan=output.plain(chosen), evals=plain, bench=output.plain(bench), samples=samples
    )
    write(data, out / "report.html")


def _summary(
    run: Run,
    plans: dict[str, Plan],
    evals: dict[str, Any],
    bench: dict[str, Any],
    chosen: dict[str, Any],
) -> None:
    made = output.table(
        None, "", ">perplexity", ">KL", ">same likeliest token", ">decode", ">byte bound"
    )
    own, last = evals["plan"]["fidelity"], evals["last"]["fidelity"]
    bound = bench["byte_bound"]["decode"]
    made.add_row("dense", numbers.significant(own["perplexity_dense"], 4), "0", "100%", "1×", "1×")
    rows = (
        (f"{chosen['rule']} {DROP}, {FILL}", own, numbers.times(bench["speedup"]["decode"]), bound),
        (f"last {DROP}, zero", last, "", None),
    )
    for name, found, decode, most in rows:
        made.add_row(
            name,
            numbers.significant(found["perplexity_planned"], 4),
            numbers.significant(found["kl"]),
            numbers.share(found["top1_agreement"]),
            decode,
            numbers.times(most) if most else "",
        )
    del plans
    run.console.print(made)
    run.console.print(bench_verb.verdict(bench))


def _where(run: Run, out: Path, clock: Clock) -> None:
    console = run.console
    console.print(f"\nOpen [bold]{out / 'report.html'}[/] in a browser. Beside it:")
    made = output.table(None, "", "")
    for name, what in (
        ("plan.yaml", "the plan, with its fitted fills in plan.safetensors"),
        ("model", "the planned model, which transformers loads without skimp"),
        ("*.json", "every number, in the form of docs/json.md"),
    ):
        made.add_row(str(out / name), what)
    console.print(made)
    console.print(f'Try it: skimp generate {out / "model"} "Why is the sky blue?"')
    times = ", ".join(f"{name.lower()} {seconds:.0f} s" for name, seconds in clock.stages.items())
    run.progress.note(f"{times}; {clock.budget - clock.left:.0f} s in all.")


def _document(
    chosen: dict[str, Any], evals: dict[str, Any], bench: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    keys = ("skimp", "model", "plan", "seed", "device", "machine", "date", "command", "dropped")
    return {
        **{key: chosen[key] for key in keys},
        "fidelity": {name: document["fidelity"] for name, document in evals.items()},
        "tasks": {name: document["tasks"] for name, document in evals.items()},
        "speedup": bench["speedup"],
        "byte_bound": bench["byte_bound"],
        "stages": clock.stages,
    }


def _save(path: Path, document: dict[str, Any]) -> None:
    output.write_text(path, output.dump(document), "--out")
