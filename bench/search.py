"""Does the search keep its promises? Coverage of quality, and foretold against measured speed.

`coverage` draws the documents of a finished search's judging text anew, 100 times, and each time
lets budgets of many sizes choose by what was drawn: how often does the chosen plan keep the limit
on all of the documents? `speeds` sets what is promised of plans, chosen for drawn workloads and
wanted speeds, against a further timing; it wants the machine for itself.

    .venv/bin/python bench/search.py coverage FOLDER --json bench/results/search-coverage.json
    .venv/bin/python bench/search.py speeds MODEL FOLDER --json bench/results/search-speeds.json
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import skimp
from skimp.finder.budget import Budget
from skimp.finder.choices import Choice, Place, plan_of
from skimp.finder.clock import Clock, measure_prices
from skimp.finder.judge import bare
from skimp.finder.knapsack import pick
from skimp.finder.menu import Menu
from skimp.finder.prices import made_up
from skimp.finder.proof import judge, pass_in_order
from skimp.finder.search import SPARE
from skimp.finder.select import select
from skimp.finder.state import State, read_json
from skimp.measure import cost
from skimp.measure.machine import identity
from skimp.methods.registry import reduce
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


def speeds(source: str, folder: Path, number: int, seconds: float) -> dict[str, Any]:
    """Promised and measured speed of what the knapsack picks for drawn budgets on speed.

    By the machine's prices, and by the harms that a search foretold in `folder`. A first timing is
    what a search has, a second one decides whether the plan is handed out and with what promise, a
    third is what it then runs at. No timing begins after `seconds`; the same command goes on later.
    Weights are made up, which changes no time.
    """
    model, rows, began = skimp.load(source).model, [], time.monotonic()
    draw = random.Random(0)
    for words in WORKLOADS:
        workload = Workload.parse(words)
        menu = Menu.of(model, workload, measure_prices(model, workload, thin=True))
        menu = menu.of_groups(("drop", "calibrated"))
        harms = _foretold(folder, menu)
        state = State(folder.with_suffix(f".speeds-{words}"), {"workload": words})
        clock = Clock(model, workload)
        for _ in range(number // len(WORKLOADS)):
            budget = round(draw.uniform(1.05, 1.7), 3)
            chosen = pick(harms, menu.savings, menu.dense * (1 - 1 / (budget * SPARE)))
            assert chosen is not None
            plan = made_up(bare(plan_of(chosen, menu.anatomy)), menu.anatomy)
            name = f"timed-{budget}"
            late = time.monotonic() - began > seconds
            if late and not (state.folder / f"{name}.json").exists():
                continue

            def timed(plan: Plan = plan, clock: Clock = clock) -> list[list[float]]:
                found = [clock.speedup(plan) for _ in range(TIMES)]
                return [[each.estimate, *each.pair] for each in found]

            row = {"workload": words, "budget": budget, "foretold": menu.speedup(chosen)}
            bound = cost.byte_bound(menu.anatomy, reduce(plan, menu.anatomy), workload)
            rows.append({**row, "byte_bound": bound, **_handed(budget, bound, state, name, timed)})
            print(rows[-1], flush=True)
    return _summary(rows)


def _foretold(folder: Path, menu: Menu) -> dict[Place, dict[Choice | None, float]]:
    """Harms of the menu's choices, as a search foretold them."""
    found: dict[Place, dict[Choice | None, float]] = {}
    for layer, kind, offer, level, rise in read_json(folder / "foretold.json")["found"]:
        choice = Choice(layer, kind, offer, level)
        if choice in menu.choices:
            found.setdefault(choice.place, {None: 0.0})[choice] = rise
    return found


def _handed(
    budget: float, bound: float, state: State, name: str, timed: Callable[[], list[list[float]]]
) -> dict[str, Any]:
    """What a search would do with a plan alone, and how it then runs."""
    first, second, third = timings = state.remember(name, timed)
    entry = {
        "number": 1,
        "source": "finder",
        "speedup": first[0],
        "speedup_interval": first[1:],
        "byte_bound": bound,
        "loss_difference": 0.0,
        "tokens": 0,
    }
    limit = Budget.parse([f"speedup>={budget}"])
    found = select(limit, [entry], {1: []}, lambda _: (second[0], (second[1], second[2])))
    return {
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("coverage", "speeds"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--number", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    source, folder = given.names[0], Path(given.names[-1])
    if given.what == "coverage":
        found = coverage(folder, given.number or 100)
    else:
        found = speeds(source, folder, given.number or 60, given.seconds)
    document = {"skimp": skimp.__version__, "machine": identity(), given.what: found}
    print(json.dumps(found, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
