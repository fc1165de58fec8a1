"""Does the search keep its promises? Coverage of quality, and foretold against measured speed.

`coverage` draws the documents of a finished search's judging text anew, 100 times, and each time
lets budgets of many sizes choose by what was drawn: how often does the chosen plan keep the limit
on all of the documents? `speeds` sets what is promised of plans, chosen for drawn workloads and
wanted speeds, against a further timing. `prices` and `speeds` want the machine for themselves,
`picks`, between them, does not.

    .venv/bin/python bench/search.py coverage FOLDER --json bench/results/search-coverage.json
    .venv/bin/python bench/search.py prices MODEL
    .venv/bin/python bench/search.py picks MODEL FOLDER
    .venv/bin/python bench/search.py speeds MODEL FOLDER --json bench/results/search-speeds.json
"""

import argparse
import json
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import skimp
from skimp.finder.budget import Budget
from skimp.finder.choices import plan_of
from skimp.finder.clock import Clock, measure_prices
from skimp.finder.judge import bare
from skimp.finder.ladder import Ladder
from skimp.finder.menu import Menu
from skimp.finder.prices import Bytes, made_up
from skimp.finder.proof import judge, pass_in_order
from skimp.finder.search import SPARE
from skimp.finder.select import select
from skimp.finder.state import State, read_json
from skimp.finder.workers import read_texts
from skimp.measure import cost
from skimp.measure.machine import identity
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.workload import Workload

TIMES = 3
LIMITS = tuple(f"loss<={share}%" for share in (2, 3, 5, 7, 10, 15, 20, 30, 40, 50))
WORKLOADS = ("128+128x1", "512+128x1", "1024+64x1", "256+64x4")


def coverage(folder: Path, resamples: int) -> dict[str, Any]:
    """How often what was promised on drawn documents holds on all of them."""
    entries = [
        entry
        for entry in read_json(folder / "result.json")["search"]["plans"]
        if entry["source"] == "finder"
    ]
    entries.sort(key=lambda entry: entry["joint"])
    every = [
        np.array(read_json(folder / f"judged-{entry['file']}.json")["found"]) for entry in entries
    ]
    documents = len(every[0])
    found = {}
    for text in LIMITS:
        (limit,) = Budget.parse([text]).limits
        promised, kept = 0, 0
        for seed in range(resamples):
            drawn = np.random.default_rng(seed).integers(0, documents, documents)
            passed = pass_in_order([limit], [sums[drawn].tolist() for sums in every])
            if passed.last is not None:
                promised += 1
                kept += judge(limit, every[passed.last].tolist()).seen <= limit.value
        found[text] = {"promised": promised, "kept": kept}
    total = sum(each["promised"] for each in found.values())
    return {
        "documents": documents,
        "resamples": resamples,
        "limits": found,
        "promised": total,
        "coverage": sum(each["kept"] for each in found.values()) / max(1, total),
    }


def prices(source: str) -> dict[str, Any]:
    """The machine's prices at every workload, which searches keep in the cache folder."""
    model = skimp.load(source).model
    return {
        words: dict(measure_prices(model, Workload.parse(words), thin=True).prices)
        for words in WORKLOADS
    }


def picks(source: str, folder: Path, number: int) -> dict[str, Any]:
    """What the ladder chooses for drawn budgets on speed, by measured prices; nothing is timed."""
    model = skimp.load(source).model
    texts, draw = read_texts(folder), random.Random(0)
    for words in WORKLOADS:
        workload = Workload.parse(words)
        by_bytes = Menu.of(model, workload, Bytes())
        menu = replace(by_bytes, prices=measure_prices(model, workload, thin=True))
        state = State(_beside(folder, words), {"workload": words})
        budgets = [round(draw.uniform(1.05, 1.7), 3) for _ in range(number // len(WORKLOADS))]
        with Ladder(model, menu, texts, state, 0) as ladder:
            ladder.groups = ["calibrated"]
            for budget in budgets:
                (rung,) = ladder.rungs(budget * SPARE)
                plan = bare(plan_of(rung.chosen, menu.anatomy))
                asked = Asked(budget, menu.speedup(rung.chosen), dict(plan.sections))
                state.remember(f"asked-{budget}", lambda asked=asked: asdict(asked))
                print(words, budget, asked.foretold, flush=True)
    return {}


def speeds(source: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Promised and measured speed of the plans that :func:`picks` chose.

    A first timing is what a search promises, a second one decides whether the plan is handed out,
    a third is what it then runs at. For `seconds`; the same command goes on later. Weights are made
    up, which changes no time.
    """
    model, rows, began = skimp.load(source).model, [], time.monotonic()
    for words in WORKLOADS:
        workload, place = Workload.parse(words), _beside(folder, words)
        state, clock = State(place, {"workload": words}), Clock(model, workload)
        for path in sorted(place.glob("asked-*.json")):
            asked = Asked(**read_json(path)["found"])
            plan = asked.plan(clock.anatomy)

            def timed(plan: Plan = plan, clock: Clock = clock) -> list[Any]:
                found = [clock.speedup(plan) for _ in range(TIMES)]
                return [[each.estimate, *each.pair] for each in found]

            name = path.stem.replace("asked", "timed")
            if time.monotonic() - began > seconds and not (place / f"{name}.json").exists():
                continue
            rows.append(_row(words, asked, clock.anatomy, workload, state.remember(name, timed)))
            print(rows[-1], flush=True)
    return _summary(rows)


@dataclass(frozen=True)
class Asked:
    """A drawn budget on speed, and the plan chosen for it with the speed that prices foretell."""

    budget: float
    foretold: float
    sections: Mapping[str, Mapping[str, Any]]

    def plan(self, dense: Anatomy) -> Plan:
        """The plan with made-up values."""
        plan = Plan.empty(dense)
        for name, section in self.sections.items():
            plan = plan.with_section(name, dict(section))
        return made_up(plan, dense)


def _row(
    words: str, asked: Asked, dense: Anatomy, workload: Workload, timings: list[list[float]]
) -> dict[str, Any]:
    """What a search would do with this plan alone, and how it then runs."""
    first, second, third = timings
    planned = reduce(asked.plan(dense), dense)
    entry = {
        "number": 1,
        "source": "finder",
        "speedup": first[0],
        "speedup_interval": first[1:],
        "byte_bound": cost.byte_bound(dense, planned, workload),
        "loss_difference": 0.0,
        "tokens": 0,
    }
    budget = Budget.parse([f"speedup>={asked.budget}"])
    found = select(budget, [entry], {1: []}, lambda _: (second[0], (second[1], second[2])))
    return {
        "workload": words,
        "budget": asked.budget,
        "foretold": asked.foretold,
        "byte_bound": entry["byte_bound"],
        "handed_out": found.number is not None,
        "withheld": [each["reason"] for each in found.withheld],
        "timings": timings,
        "promised": found.promise["speedup"] if found.promise else None,
        "measured": third[0],
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    given = [row for row in rows if row["handed_out"]]
    errors = {
        "promised": [abs(row["promised"] / row["measured"] - 1) for row in given],
        "foretold": [abs(row["foretold"] / row["measured"] - 1) for row in rows],
        "one timing": [abs(row["timings"][0][0] / row["measured"] - 1) for row in rows],
    }
    return {
        "plans": rows,
        "handed_out": len(given),
        "within_5_percent": {
            name: float(np.mean(np.array(each) <= 0.05)) for name, each in errors.items()
        },
        "median_error": {name: float(np.median(each)) for name, each in errors.items()},
        "largest_error": {name: float(np.max(each)) for name, each in errors.items()},
        "threads": torch.get_num_threads(),
    }


def _beside(folder: Path, words: str) -> Path:
    return folder.with_suffix(f".speeds-{words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("coverage", "prices", "picks", "speeds"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--number", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    source, folder = given.names[0], Path(given.names[-1])
    if given.what == "coverage":
        found = coverage(folder, given.number or 100)
    elif given.what == "prices":
        found = prices(source)
    elif given.what == "picks":
        found = picks(source, folder, given.number or 60)
    else:
        found = speeds(source, folder, given.seconds)
    document = {"skimp": skimp.__version__, "machine": identity(), given.what: found}
    print(json.dumps(found, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
