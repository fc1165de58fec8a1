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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import skimp
from skimp.finder import aim
from skimp.finder.budget import Budget
from skimp.finder.choices import Choice, Chosen, Place, plan_of
from skimp.finder.clock import Clock, measure_prices
from skimp.finder.entry import entry_of
from skimp.finder.judge import bare
from skimp.finder.knapsack import pick
from skimp.finder.menu import Menu
from skimp.finder.prices import made_up
from skimp.finder.proof import judge, pass_in_order
from skimp.finder.search import PROMISED
from skimp.finder.select import select
from skimp.finder.state import State, read_json
from skimp.measure.machine import identity
from skimp.plan import Plan
from skimp.workload import Workload

LIMITS = tuple(f"loss<={share}%" for share in (2, 3, 5, 7, 10, 15, 20, 30, 40, 50))
SHOWN = ("foretold", "byte_bound", "speedup", "speedup_interval", "loss_difference")
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
    """Promised and measured speed of plans for drawn budgets on speed.

    Picked by the machine's prices, and by the harms that a search foretold in `folder`. As in a
    search, plans are timed and aimed again, a second and longer timing decides what is handed out
    and with what promise; a third, as long, is what that plan then runs at. No budget begins after
    `seconds`; the same command goes on later. Weights are made up, which changes no time.
    """
    model, rows, began = skimp.load(source).model, [], time.monotonic()
    draw = random.Random(0)
    for words in WORKLOADS:
        workload = Workload.parse(words)
        menu = Menu.of(model, workload, measure_prices(model, workload, thin=True))
        menu = menu.of_groups(("drop", "calibrated"))
        shooting = Shooting(menu, _foretold(folder, menu), Clock(model, workload))
        state = State(folder.with_suffix(f".speeds-{words}"), {"workload": words})
        for _ in range(number // len(WORKLOADS)):
            budget = round(draw.uniform(1.05, 1.7), 3)
            late = time.monotonic() - began > seconds
            if late and not (state.folder / f"budget-{budget}.json").exists():
                continue
            row = state.remember(f"budget-{budget}", partial(shooting.at, budget))
            rows.append({"workload": words, **row})
            print(rows[-1], flush=True)
    return _summary(rows)


@dataclass(frozen=True)
class Shooting:
    """Plans for wanted speeds at one workload, as a search would come to them, and what they do."""

    menu: Menu
    harms: dict[Place, dict[Choice | None, float]]
    clock: Clock

    def at(self, wanted: float) -> dict[str, Any]:
        """What is handed out for a budget, and how it then runs."""
        known, plans, entries = list[Chosen](), list[Plan](), list[dict[str, Any]]()
        ask: float | None = aim.first(wanted)
        while ask is not None and len(plans) <= aim.ROUNDS:
            chosen = pick(self.harms, self.menu.savings, self.menu.to_save(ask))
            if chosen is None or chosen in known:
                break
            known.append(chosen)
            plans.append(made_up(bare(plan_of(chosen, self.menu.anatomy)), self.menu.anatomy))
            entries.append(self._entry(chosen, plans[-1], len(plans)))
            ran = [(entry["foretold"], entry["speedup"]) for entry in entries]
            ask = aim.again(wanted, ran)
        again = dict[int, list[float]]()

        def timed_again(number: int) -> tuple[float, tuple[float, float]]:
            again[number] = self._timed(plans[number - 1], PROMISED)
            estimate, low, high = again[number]
            return estimate, (low, high)

        limit = Budget.parse([f"speedup>={wanted}"])
        judged = {entry["number"]: [] for entry in entries}
        found = select(limit, entries, judged, timed_again)
        given, promise = found.number, found.promise
        return {
            "budget": wanted,
            "plans": [{k: entry[k] for k in SHOWN} for entry in entries],
            "again": again,
            "handed_out": given,
            "withheld": [each["reason"] for each in found.withheld],
            "promised": promise["speedup"] if promise else None,
            "measured": None if given is None else self._timed(plans[given - 1], PROMISED)[0],
        }

    def _entry(self, chosen: Chosen, plan: Plan, number: int) -> dict[str, Any]:
        speed, *interval = self._timed(plan)
        entry = entry_of(plan, self.menu.anatomy, self.menu.workload, "finder", "")
        harm = sum(self.harms[place][choice] for place, choice in chosen.items())
        timed = {"foretold": self.menu.speedup(chosen), "speedup": speed}
        told = {"number": number, "loss_difference": harm, "tokens": 0}
        return entry | told | timed | {"speedup_interval": interval}

    def _timed(self, plan: Plan, within: float | None = None) -> list[float]:
        found = self.clock.speedup(plan, within=within)
        return [found.estimate, *found.pair]


def _foretold(folder: Path, menu: Menu) -> dict[Place, dict[Choice | None, float]]:
    """Harms of the menu's choices, as a search foretold them."""
    found: dict[Place, dict[Choice | None, float]] = {}
    for layer, kind, offer, level, rise in read_json(folder / "foretold.json")["found"]:
        choice = Choice(layer, kind, offer, level)
        if choice in menu.choices:
            found.setdefault(choice.place, {None: 0.0})[choice] = rise
    return found


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    given = [row for row in rows if row["handed_out"] is not None]
    errors = [abs(row["promised"] / row["measured"] - 1) for row in given]
    prices = [
        abs(plan["foretold"] / plan["speedup"] - 1) for row in rows for plan in row["plans"][:1]
    ]
    return {
        "budgets": rows,
        "drawn": len(rows),
        "handed_out": len(given),
        "within_5_percent": float(np.mean(np.array(errors) <= 0.05)),
        "error": {"median": float(np.median(errors)), "largest": max(errors)},
        "error_of_prices": {"median": float(np.median(prices)), "largest": max(prices)},
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
