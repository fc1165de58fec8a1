"""Does the search keep its promises? Coverage of quality, and foretold against measured speed.

`coverage` draws the documents of a finished search's judging text anew, 100 times, and each time
lets budgets of many sizes choose by what was drawn: how often does the chosen plan keep the limit
on all of the documents? `speeds` draws workloads and wanted speeds, lets the ladder choose by the
machine's prices, times the plan beside dense twice, and sets foretold and first timing against the
second.

    .venv/bin/python bench/search.py coverage FOLDER --json bench/results/search-coverage.json
    .venv/bin/python bench/search.py speeds MODEL FOLDER --json bench/results/search-speeds.json
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

import skimp
from skimp.finder.budget import Budget
from skimp.finder.choices import plan_of
from skimp.finder.clock import Clock, measure_prices
from skimp.finder.judge import bare, fit
from skimp.finder.ladder import Ladder
from skimp.finder.menu import Menu
from skimp.finder.prices import Bytes
from skimp.finder.proof import judge, pass_in_order
from skimp.finder.state import State, read_json
from skimp.finder.workers import read_texts
from skimp.measure.machine import identity
from skimp.workload import Workload

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


def speeds(source: str, folder: Path, number: int) -> dict[str, Any]:
    """Foretold and measured speed of plans for drawn workloads and wanted speeds."""
    loaded = skimp.load(source)
    texts = read_texts(folder)
    draw = random.Random(0)
    rows = []
    for words in WORKLOADS:
        workload = Workload.parse(words)
        by_bytes = Menu.of(loaded.model, workload, Bytes())
        prices = measure_prices(loaded.model, workload, thin=True)
        menu = Menu(by_bytes.anatomy, workload, prices, by_bytes.choices)
        state = State(folder.with_suffix(f".speeds-{words}"), {"workload": words})
        chosen = []
        with Ladder(loaded.model, menu, texts, state, 0) as ladder:
            ladder.groups = ["calibrated"]
            for _ in range(number // len(WORKLOADS)):
                rungs = ladder.rungs(round(draw.uniform(1.05, 1.7), 3))
                chosen += [rung.chosen for rung in rungs]
        clock = Clock(loaded.model, workload)
        for choices in chosen:
            plan = fit(loaded.model, bare(plan_of(choices, menu.anatomy)), texts.fitting)
            first, second = clock.speedup(plan).estimate, clock.speedup(plan).estimate
            foretold = menu.speedup(choices)
            rows.append({"workload": words, "foretold": foretold, "first": first, "second": second})
            print(rows[-1], flush=True)
    errors = {
        name: [abs(row[name] / row["second"] - 1) for row in rows] for name in ("foretold", "first")
    }
    return {
        "plans": rows,
        "within_5_percent": {
            name: float(np.mean(np.array(each) <= 0.05)) for name, each in errors.items()
        },
        "median_error": {name: float(np.median(each)) for name, each in errors.items()},
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("coverage", "speeds"))
    parser.add_argument("names", nargs="+")
    parser.add_argument("--number", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "coverage":
        found = coverage(Path(given.names[0]), given.number or 100)
    else:
        found = speeds(given.names[0], Path(given.names[1]), given.number or 60)
    document = {"skimp": skimp.__version__, "machine": identity(), given.what: found}
    print(json.dumps(found, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
