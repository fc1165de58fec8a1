"""`skimp plan --budget`: search for the best plan; `--pick`: take one of those that it found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from skimp.cli import frontier_table
from skimp.cli.common import Run, require_tokenizer
from skimp.cli.planning import describe
from skimp.errors import SkimpError

if TYPE_CHECKING:
    from skimp.finder.accuracy import Scorer
    from skimp.finder.budget import Budget
    from skimp.finder.search import Found
    from skimp.finder.state import State
    from skimp.finder.texts import Texts
    from skimp.models.load import Loaded
    from skimp.plan import Plan
    from skimp.workload import Workload

_RESULT = "result.json"


@dataclass(frozen=True)
class Asked:
    """What the command line says of a search."""

    budget: list[str]
    search: bool
    costs: str
    minutes: float | None
    workers: int | None
    ray: str | None
    state: Path | None
    rules: bool
    held_out: Path | None
    pick: int | None
    include: Path | None = None
    limit: int | None = None

    @property
    def any(self) -> bool:
        return bool(self.budget) or self.search or self.pick is not None


def check_absent(asked: Asked) -> None:
    """Refuse options of a search where none was asked for; else they would pass unseen."""
    if asked != Asked([], False, "measured", None, None, None, None, False, None, None):
        raise SkimpError(
            "--costs, --time, --held-out, --compare, --workers, --ray, --state, --include and "
            "--limit are about a search; give a --budget or --search, or leave them out."
        )


def check(asked: Asked) -> Budget:
    """Refuse what makes no sense, before anything is loaded."""
    from skimp.finder.budget import Budget
    from skimp.finder.search import Costs

    if asked.costs not in get_args(Costs):
        raise SkimpError(f"--costs: {asked.costs!r} is none of {', '.join(get_args(Costs))}.")
    if asked.minutes is not None and not asked.minutes > 0:  # nor is NaN
        raise SkimpError(f"--time: {asked.minutes:g} minutes are none; give more, or leave it out.")
    if asked.workers is not None and asked.workers < 1:
        raise SkimpError("--workers: give at least 1.")
    if asked.held_out is not None and not asked.held_out.is_file():
        raise SkimpError(f"--held-out: there is no file {asked.held_out}.")
    budget = Budget.parse(asked.budget)
    _check_tasks(asked, budget)
    speed = budget.get("speedup")
    if speed is not None and asked.costs == "bytes":
        raise SkimpError(
            "--budget: with --costs bytes nothing is timed, so no speedup can be promised; ask for "
            f"bytes>={speed.value:g}x, or leave --costs out."
        )
    return budget


def _check_tasks(asked: Asked, budget: Budget) -> None:
    """Refuse unknown tasks before the model is loaded, and options about none."""
    if asked.limit is not None and asked.limit < 1:
        raise SkimpError("--limit: give at least 1, or leave it out to score all items.")
    if budget.accuracy is None:
        if asked.include is not None or asked.limit is not None:
            raise SkimpError(
                "--include and --limit: they are about tasks; name some with --budget "
                '"accuracy(TASK)>=-1".'
            )
        return
    if asked.include is not None and not asked.include.is_dir():
        raise SkimpError(f"--include: there is no folder {asked.include}.")
    from skimp.finder.accuracy import found_tasks
    from skimp.measure.tasks import load_tasks

    load_tasks(found_tasks(budget.accuracy, asked.include))


def folder_of(asked: Asked, out: Path | None) -> Path:
    """Where a search keeps what it has found: beside the plan unless said otherwise."""
    if asked.state is not None:
        return asked.state
    if out is None:
        raise SkimpError("--out: name the plan file to write, or --state for the search's folder.")
    return out.with_suffix(".search")


def search(
    run: Run,
    loaded: Loaded,
    asked: Asked,
    budget: Budget,
    workload: Workload,
    calibration: Path | None,
    out: Path | None,
) -> None:
    """Search, show what was found, and write the chosen plan, if there is one."""
    from skimp.finder.papers import papers
    from skimp.finder.search import Search, Wanted
    from skimp.finder.state import State
    from skimp.finder.workers import Site, make, workers
    from skimp.models.anatomy import Anatomy
    from skimp.models.cache import write_json

    began = time.monotonic()
    folder = folder_of(asked, out)
    anatomy = Anatomy.of(loaded.model)
    wanted = Wanted(
        workload,
        budget,
        cast("Any", asked.costs),
        run.seed,
        None if asked.minutes is None else asked.minutes * 60,
    )
    texts_of = {
        "calibration": _digest(calibration),
        "held_out": _digest(asked.held_out),
    }
    key = {"model": anatomy.fingerprint, "dtype": run.dtype, **wanted.key, **texts_of}
    state = State(folder, key)
    texts = _texts(run, loaded, calibration, asked.held_out, state)
    number = asked.workers or _workers(run, loaded)
    site = Site(loaded.source, run.dtype, run.device, _threads(number), folder)
    with (
        workers(number, site, partial(make, loaded.model, texts), asked.ray) as do,
        _drawing() as shown,
    ):
        made = Search(
            loaded.model,
            wanted,
            texts,
            state,
            do,
            progress=run.progress,
            shown=shown,
            scorer=_scorer(run, loaded, asked, budget, state),
            began=began,
        )
        rules = (
            papers(loaded.model, loaded.tokenizer, texts.fitting, run.seed) if asked.rules else ()
        )
        found = made.run(rules)
    result = {**run.loaded_header(loaded, anatomy, None), "search": found.search}
    write_json(folder / _RESULT, result)
    plan = _hand_out(found, folder, out)
    document = _document(run, loaded, plan, found, texts, workload)
    _show(run, found, folder, out if plan is not None else None)
    run.finish(document)


def _scorer(run: Run, loaded: Loaded, asked: Asked, budget: Budget, state: State) -> Scorer | None:
    from skimp.finder.accuracy import Scorer, found_tasks

    limit = budget.accuracy
    if limit is None:
        return None
    return Scorer(
        loaded.model,
        require_tokenizer(loaded, "a budget on accuracy"),
        limit,
        found_tasks(limit, asked.include),
        state,
        items=asked.limit,
        seed=run.seed,
        progress=run.progress,
    )


def pick(run: Run, asked: Asked, out: Path | None) -> None:
    """Write one of the plans that a search found."""
    from skimp.finder.state import read_json

    folder = folder_of(asked, out)
    if out is None:
        raise SkimpError("--out: name the plan file to write, for example --out plan.yaml.")
    if not (folder / _RESULT).exists():
        raise SkimpError(
            f"--pick: {folder} holds no finished search; search first, or name its folder with "
            "--state."
        )
    result = read_json(folder / _RESULT)
    numbers = [entry["number"] for entry in result["search"]["plans"] if entry["number"]]
    if asked.pick not in numbers:
        listed = ", ".join(map(str, numbers))
        raise SkimpError(f"--pick: there is no plan {asked.pick}; there are {listed}.")
    entry = next(e for e in result["search"]["plans"] if e["number"] == asked.pick)
    plan = _write(folder, entry, result["search"], out)
    run.console.print(f"Wrote plan {asked.pick} to [bold]{out}[/].")
    search = {**result["search"], "chosen": asked.pick, "promise": None}
    run.finish({**result, "command": run.command, "plan": plan.to_dict(), "search": search})


def _hand_out(found: Found, folder: Path, out: Path | None) -> Plan | None:
    number = found.selection.number
    if number is None or out is None:
        return None
    entry = next(e for e in found.search["plans"] if e["number"] == number)
    return _write(folder, entry, found.search, out, found.selection.promise)


def _write(
    folder: Path,
    entry: Mapping[str, Any],
    search: Mapping[str, Any],
    out: Path,
    promise: Mapping[str, Any] | None = None,
) -> Plan:
    """The fitted plan as a file, with what was found out about it that no clock had a part in."""
    from skimp.plan import Plan

    names = ("kl", "kl_interval", "loss_difference", "loss_interval", "agreement", "byte_bound")
    evidence = {name: entry[name] for name in names}
    evidence |= {"workload": search["workload"], "budget": search["budget"]}
    if entry["accuracy"] is not None:
        evidence |= {"accuracy": entry["accuracy"]["proving"]}
    if promise is not None and promise["bound"] is not None:
        evidence |= {"bound": promise["bound"], "level": promise["level"]}
    plan = Plan.read(folder / f"{entry['file']}.yaml").with_evidence(search=evidence)
    plan.write(out)
    return plan


def _document(
    run: Run,
    loaded: Loaded,
    plan: Plan | None,
    found: Found,
    texts: Texts,
    workload: Workload,
) -> dict[str, Any]:
    """The verb's document; without a chosen plan it is about the dense model."""
    from skimp.models.anatomy import Anatomy
    from skimp.plan import Plan

    facts: dict[str, Any] = {
        "rule": None,
        "harm": "kl",
        "calibration_loss": None,
        "seconds": found.search["seconds"],
        "path": [],
        "importance": {},
        "calibration": texts.fitting.to_dict(),
        "spread": None,
    }
    told = plan or Plan.empty(Anatomy.of(loaded.model))
    return {**describe(run, loaded, told, facts, workload), "search": found.search}


def _texts(
    run: Run, loaded: Loaded, calibration: Path | None, held_out: Path | None, state: Any
) -> Texts:
    from skimp.calibration.text import calibrate
    from skimp.finder.texts import Texts
    from skimp.finder.workers import has_texts, read_texts, write_texts

    if has_texts(state.folder):
        return read_texts(state.folder)
    tokenizer = require_tokenizer(loaded, "searching for a plan")
    text = calibrate(
        loaded.model, tokenizer, text=calibration, seed=run.seed, progress=run.progress
    )
    others = None
    if held_out is not None:
        judged = calibrate(loaded.model, tokenizer, text=held_out, seed=run.seed)
        others = judged.documents
    texts = Texts.of(text, run.seed, held_out=others)
    write_texts(state.folder, texts)
    return texts


def _digest(path: Path | None) -> str | None:
    from skimp.models.cache import digest

    return None if path is None else digest(path)


def _workers(run: Run, loaded: Loaded) -> int:
    """As many processes as there are cores and as fit into half of the free memory."""
    import psutil

    from skimp.models.anatomy import Anatomy

    if run.device != "cpu":
        return 1
    each = 2**30 + 2 * Anatomy.of(loaded.model).weight_bytes
    room = psutil.virtual_memory().available // 2 // each
    return max(1, min(_cores(), 4, int(room)))


def _cores() -> int:
    import torch

    return min(len(os.sched_getaffinity(0)), torch.get_num_threads())


def _threads(workers: int) -> int:
    return max(1, _cores() // workers)


@contextmanager
def _drawing() -> Iterator[Callable[..., None]]:
    """Draw the frontier on standard error whenever more is known."""
    from rich.console import Console
    from rich.panel import Panel

    console = Console(stderr=True)
    titles = iter(
        ("frontier foretold: harm if harms added up, against bytes", "harm measured jointly")
    )

    def shown(
        points: Sequence[tuple[float, float]], others: Sequence[tuple[str, float, float]]
    ) -> None:
        title = next(titles, "loss on held-out text against speed")
        console.print(Panel(frontier_table.sketch(points, others), title=title, expand=False))

    yield shown


def _show(run: Run, found: Found, folder: Path, written: Path | None) -> None:
    console = run.console
    console.print(frontier_table.table(found.search))
    for each in found.selection.withheld:
        console.print(f"Plan {each['number']} is withheld: {each['reason']}")
    for each in found.search["not_offered"]:
        console.print(f"{each['offer']}: not offered, because {each['reason']}.", highlight=False)
    console.print(found.selection.words, highlight=False)
    if not found.search["complete"]:
        console.print("The time ran out; the same command goes on where it ended.")
    if written is not None:
        console.print(f"Wrote plan {found.selection.number} to [bold]{written}[/].")
    else:
        console.print(f"Take one with --pick N --state {folder} --out PLAN.", highlight=False)
