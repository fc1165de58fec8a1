"""Recipes that fit their exits themselves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.recipes.kit import ROOT_RECIPES, TASKS, recipe, stage
from tests.recipes.test_resume import go, timeless

import skimp
from skimp.errors import EvaluationError, RecipeError
from skimp.measure.depths import Leaving
from skimp.measure.quality import evaluate
from skimp.models.anatomy import Anatomy
from skimp.recipes.exits import ExitFit, spread
from skimp.recipes.read import read_recipe

FIT = {"rule": "svm", "translator": "plain", "probes": 2, "threshold": 0.0}
PLANS: dict[str, Any] = {
    "svm": {"exit": {"fit": FIT}},
    "gap": {"exit": {"fit": {**FIT, "rule": "threshold", "threshold": 0.0}}},
    "never": {"exit": {"fit": {**FIT, "threshold": float("inf")}}},
    "cut": {"drop": {"layers": [1]}, "exit": {"fit": {**FIT, "translator": "full"}}},
}


@pytest.fixture(autouse=True)
def _short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny import calibration

    made = calibration(count=30, longest=30)
    monkeypatch.setattr("skimp.recipes.stage.Stage._text", lambda self: made)


def test_exits_are_fitted_with_the_recipes_seed(tmp_path: Path) -> None:
    found = recipe(tmp_path, TASKS, plans=PLANS)
    one, other = stage(found), stage(found)
    plans = {name: one.fitted(name) for name in PLANS}
    layers = one.anatomy.dense_layers
    section = plans["svm"].sections["exit"]
    assert section["probe"] == spread(2, one.anatomy)
    assert section["threshold"] == 0.0 and section["probe"][-1] < layers - 1
    again = other.fitted("svm")
    assert again.values.keys() == plans["svm"].values.keys()
    assert all(torch.equal(value, again.values[k]) for k, value in plans["svm"].values.items())
    # Probes go to layers that are there, and translators see the planned model.
    assert 1 not in plans["cut"].sections["exit"]["probe"]
    assert any("translator" in name for name in plans["cut"].values)
    assert one.exits("cut") and not one.exits("dense")


@pytest.mark.eval
def test_tasks_say_what_is_left_out(tmp_path: Path) -> None:
    found = recipe(tmp_path, {**TASKS, "decide": "input", "shots": 1}, plans=PLANS)
    measured, results = go(tmp_path, found)
    assert len(measured) == 5
    again, kept = go(tmp_path, found)
    assert again == [] and timeless(kept) == timeless(results)
    cells = results[0].cells
    assert cells["dense"].keys() == {"tiny_choice", "tiny_other", "mean"}
    names = ["tiny_choice", "tiny_other", "mean"]
    assert list(cells["gap"]) == [*names, *(f"{name}, left out" for name in names)]
    never = cells["never"]
    assert never["mean"].difference == 0 and never["mean, left out"].value == 0
    # A gap is never negative: everything leaves at the first probe.
    made = stage(found)
    first = made.fitted("gap").sections["exit"]["probe"][0] + 1
    gone = 1 - first / made.anatomy.dense_layers
    assert cells["gap"]["tiny_choice, left out"].value == pytest.approx(gone)
    details = results[0].outcomes["gap"].details
    assert details["exits"]["tiny_choice"]["depths"] == {str(first): 1.0}
    plan = made.fitted("svm")
    with skimp.apply(made.model, plan):
        leaving = Leaving(made.model, plan, decide="input")
        specs = f"{tmp_path / 'data' / 'tasks'}"
        after = evaluate(made.model, made.tokenizer, specs, limit=5, shots=1, leaving=leaving)
    for name, scores in after.tasks.items():
        assert cells["svm"][name].value == scores.value
        left_out = cells["svm"][f"{name}, left out"]
        assert left_out.value == after.depths[name].left_out and left_out.interval is not None


@pytest.mark.parametrize(
    ("fit", "named"),
    [
        ({"rule": "tree"}, r"plans\.x\.exit\.fit\.rule"),
        ({"probes": 0}, r"plans\.x\.exit\.fit\.probes"),
        ({"layers": 3}, r"plans\.x\.exit\.fit\.layers"),
        (7, r"plans\.x\.exit\.fit"),
    ],
)
def test_bad_fits_are_named_when_the_recipe_is_read(tmp_path: Path, fit: Any, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        recipe(tmp_path, TASKS, plans={"x": {"exit": {"fit": fit}}})


@pytest.mark.parametrize(
    ("fit", "named"),
    [
        ({"probe": [99]}, r"plans\.x\.exit\.probe: there is no layer 99"),
        ({"translator": "half"}, r"plans\.x\.exit\.translator"),
        ({"threshold": 0.5, "agreement": 0.9}, r"plans\.x\.exit\.threshold"),
    ],
)
def test_fits_that_do_not_fit_the_model_are_named(tmp_path: Path, fit: Any, named: str) -> None:
    found = recipe(tmp_path, TASKS, plans={"x": {"exit": {"fit": fit}}})
    with pytest.raises(RecipeError, match=named):
        stage(found)


def test_probes_are_spread_over_the_layers_but_the_last(tmp_path: Path) -> None:
    anatomy = stage(recipe(tmp_path, TASKS)).anatomy
    layers = anatomy.dense_layers
    for count in range(1, layers + 5):
        probe = ExitFit(probes=count, threshold=0.0).section(anatomy).probe
        assert len(set(probe)) == len(probe) <= count and set(probe) <= set(range(layers - 1))
    assert isinstance(anatomy, Anatomy)


def test_adainfer_varies_what_the_paper_does() -> None:
    found = read_recipe(ROOT_RECIPES / "adainfer.yaml")
    fits = [plan["exit"]["fit"] for plan in found.plans.values()]
    assert {fit["rule"] for fit in fits} == {"svm", "crf", "threshold"}
    assert {fit["translator"] for fit in fits} == {"plain", "full"}
    assert all(e.paper.recalled for e in found.experiments if e.paper is not None)


@pytest.mark.eval
def test_written_answers_are_refused(tmp_path: Path) -> None:
    from skimp.measure.task_depths import refuse_generated

    class Written:
        OUTPUT_TYPE = "generate_until"

    with pytest.raises(EvaluationError, match=r"task said: .* generate_until"):
        refuse_generated({"said": Written()})
