"""Does the promise of early exits hold on documents that nothing else saw?

Translators and screen are fitted once. The other documents are then split anew, 50 times, into
those that train the rule, those that calibrate thresholds and those that judge: how often is the
agreement there at least what was promised?

    .venv/bin/python bench/exit_coverage.py [MODEL] [--probe 24,29] [--candidates 2048]
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import skimp
from skimp.calibration.replay import Replay, pack
from skimp.calibration.text import calibrate as write_text
from skimp.methods.exit.choose import Seen, scores, watch
from skimp.methods.exit.fit import Fitter
from skimp.methods.exit.gather import States
from skimp.methods.exit.promise import calibrate, grid, outcome
from skimp.methods.exit.screen import KINDS
from skimp.methods.exit.section import Exit
from skimp.methods.exit.train import train
from skimp.methods.exit.values import LEVELS
from skimp.progress import RichProgress

SPLITS = 50
SHARES = (0.25, 0.375)  # of documents that train and that calibrate; as many judge


@dataclass(frozen=True)
class Coverage:
    """Of one agreement: the share of splits that kept it, and what was seen on the judges."""

    agreement: float
    kept: float
    worst: float
    mean: float
    exits: float


def coverage(
    section: Exit, seen: Seen, document: Tensor, splits: int, levels: Sequence[float] = LEVELS
) -> list[Coverage]:
    """Train, calibrate and judge on new splits of the documents."""
    numbers = document.unique().tolist()
    found: dict[float, list[tuple[float, float]]] = {level: [] for level in levels}
    for seed in range(splits):
        random.Random(seed).shuffle(numbers)
        first, second = (round(len(numbers) * s) for s in (SHARES[0], sum(SHARES)))
        parts = [numbers[:first], numbers[first:second], numbers[second:]]
        rows = [torch.isin(document, torch.tensor(part)) for part in parts]
        own, held, judge = (_some(seen, each) for each in rows)
        values = train(section, own.features, own.right)
        steps = grid(scores(section, values, own))
        table, wrong = scores(section, values, held), ~torch.stack(held.right)
        judged = scores(section, values, judge), ~torch.stack(judge.right)
        for level in calibrate(table, wrong, document[rows[1]], steps, levels):
            result = outcome(*judged, level.threshold)
            agreed = 1 - float(result.wrong.double().mean())
            left = float((result.left_at < len(section.probe)).double().mean())
            found[level.agreement].append((agreed, left))
    return [
        Coverage(
            level,
            sum(agreed >= level for agreed, _ in each) / splits,
            min(agreed for agreed, _ in each),
            sum(agreed for agreed, _ in each) / splits,
            sum(left for _, left in each) / splits,
        )
        for level, each in found.items()
    ]


def _some(seen: Seen, rows: Tensor) -> Seen:
    return Seen([each[rows] for each in seen.features], [each[rows] for each in seen.right])


def joined(parts: Sequence[States]) -> States:
    """The tokens of several parts as one."""
    after = {layer: torch.cat([p.after[layer] for p in parts]) for layer in parts[0].after}
    return States(
        after, torch.cat([p.token for p in parts]), torch.cat([p.document for p in parts])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--probe", default="24,29")
    parser.add_argument("--candidates", type=int, default=2048)
    parser.add_argument("--rule", default="svm")
    parser.add_argument("--splits", type=int, default=SPLITS)
    asked = parser.parse_args()
    progress = RichProgress()
    loaded = skimp.load(asked.model)
    text = write_text(loaded.model, loaded.tokenizer, progress=progress)
    probe = tuple(int(layer) for layer in asked.probe.split(","))
    kinds = KINDS if asked.candidates else 0
    section = Exit(probe, asked.rule, candidates=asked.candidates, screen=kinds)
    fitter = Fitter(Replay(loaded.model, pack(text.documents)), probe, progress=progress)
    states = joined((fitter.text.control, fitter.text.promise))
    seen = watch(section, fitter.basis(section), states, fitter.norm, fitter.head)
    for each in coverage(section, seen, states.document, asked.splits):
        print(
            f"{each.agreement:.2f}: kept in {each.kept:.0%} of {asked.splits} splits, "
            f"{each.mean:.4f} on average, {each.worst:.4f} at worst; {each.exits:.1%} leave"
        )


if __name__ == "__main__":
    main()
