"""A recipe's results as plain data for JSON; docs/json.md names the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from skimp.recipes.recipe import Recipe
from skimp.recipes.run import Result


def describe(recipe: Recipe, results: list[Result]) -> dict[str, Any]:
    """All that a run found, scores of single items included."""
    return {
        "recipe": {
            "file": recipe.path.name,
            "sha256": sha256(recipe.path.read_bytes()).hexdigest(),
            "title": recipe.title,
            "paper": asdict(recipe.paper),
        },
        "data": str(recipe.data),
        "plans": {name: dict(sections) for name, sections in recipe.plans.items()},
        "experiments": {result.job.experiment.name: _experiment(result) for result in results},
    }


def _experiment(result: Result) -> dict[str, Any]:
    job = result.job
    kept = {unit.plan: unit.kept is not None for unit in job.units}
    paper = job.experiment.paper
    return {
        "kind": job.kind.name,
        "title": job.experiment.title,
        "settings": asdict(job.experiment.settings),
        "items": job.prepared.items,
        "skipped": job.prepared.skipped,
        "paper": asdict(paper) if paper is not None else None,
        "plans": {plan: _plan(result, plan, kept[plan]) for plan in result.outcomes},
    }


def _plan(result: Result, plan: str, kept: bool) -> Mapping[str, Any]:
    outcome = result.outcomes[plan]
    scores = {
        name: {"kind": metric.kind, "scores": metric.scores, "weights": metric.weights}
        for name, metric in outcome.metrics.items()
    }
    return {
        "metrics": {name: cell.to_dict() for name, cell in result.cells[plan].items()},
        "items": scores,
        "details": outcome.details,
        "seconds": outcome.seconds,
        "kept": kept,
    }
