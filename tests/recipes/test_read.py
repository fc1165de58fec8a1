"""Reading recipes: what they mean, and a sentence that names whatever is wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.recipes.kit import EXPERIMENTS, PLANS, recipe, write

from skimp.errors import RecipeError
from skimp.recipes.grid import expand
from skimp.recipes.read import read_recipe
from skimp.recipes.recipe import Recipe
from skimp.recipes.run import check


def test_a_recipe_is_read(tmp_path: Path) -> None:
    found = recipe(tmp_path)
    assert [e.name for e in found.experiments] == list(EXPERIMENTS)
    assert found.plans == PLANS
    assert found.model == "demo"
    assert found.data == tmp_path / "data"
    summaries = found.experiments[0]
    assert summaries.plans == ("half", "no-attention")
    assert (summaries.settings.items, summaries.settings.stop) == (3, ())
    assert summaries.paper is not None and summaries.paper.recalled


def test_a_grid_names_every_plan() -> None:
    entry = {
        "for": {"select": ["topk", "random"], "keep": [1.0, 0.25]},
        "experts": {"keep": "{keep}", "select": "{select}"},
        "drop": {"attention": [1], "fill": "zero"},
    }
    found = expand({"{select}-{keep}": entry, "one": {"experts": {}}}, "")
    assert list(found) == ["topk-1.0", "topk-0.25", "random-1.0", "random-0.25", "one"]
    assert found["random-0.25"]["experts"] == {"keep": 0.25, "select": "random"}
    assert found["topk-1.0"]["drop"] == {"attention": [1], "fill": "zero"}


@pytest.mark.parametrize(
    ("plans", "named"),
    [
        ({"a-{keep}": {"experts": {"keep": 0.5}}}, "braces"),
        ({"a": {"for": {"keep": [0.5, 0.25]}, "experts": {"keep": "{keep}"}}}, "called a"),
        ({"a-{keep}": {"for": {"keep": 0.5}}}, "plans.a-{keep}.for"),
        ({"a-{keep}": {"for": [0.5]}}, "plans.a-{keep}.for"),
        ({"dense": {"experts": {}}}, "dense"),
        ({"a": {"experts": {"keep": 2}}}, "plans.a.experts.keep"),
        ({"a": {"expert": {"keep": 0.5}}}, "experts"),
        ({"a": {"experts": 0.5}}, "plans.a.experts"),
    ],
)
def test_bad_plans_are_named(tmp_path: Path, plans: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=r"^recipe\.yaml: plans") as caught:
        recipe(tmp_path, EXPERIMENTS["text"], plans=plans)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "dreams"}, "experiments.text.kind: there is no 'dreams'"),
        ({"items": 0}, "experiments.text.items"),
        ({"items": True}, "experiments.text.items"),
        ({"items": "many"}, "experiments.text.items"),
        ({"itms": 3}, "experiments.text.itms"),
        ({"file": None}, "experiments.text.file"),
        ({"name": "a b"}, "experiments.0.name"),
        ({"name": 5}, "experiments.0.name"),
        ({"plans": ["quarter"]}, "experiments.text.plans: the recipe has no plan 'quarter'"),
        ({"plans": "half"}, "experiments.0.plans"),
        ({"paper": {"figures": {}}}, "experiments.text.paper.model"),
        ({"paper": {"model": "P", "figures": {"rouge1": {}}}}, "experiments.text.paper.figures"),
        (
            {"paper": {"model": "P", "figures": {"perplexity": {"third": 1.0}}}},
            "paper.figures.perplexity.third",
        ),
    ],
)
def test_bad_experiments_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, {**EXPERIMENTS["text"], **change})
    text = str(caught.value)
    assert text.startswith("recipe.yaml: ")
    assert named in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": 2}, "recipe.yaml: recipe"),
        ({"title": None}, "recipe.yaml: title"),
        ({"paper": {}}, "recipe.yaml: paper.citation"),
        ({"sauce": "hot"}, "recipe.yaml: sauce"),
        ({"experiments": []}, "recipe.yaml: experiments"),
        ({"experiments": [EXPERIMENTS["text"]] * 2}, "two are called text"),
    ],
)
def test_bad_envelopes_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, **change)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such recipe"),
        (b"\xff\xfe\x00", "recipe"),
        (b"recipe: [1", "YAML"),
        (b"skimp: 1", "recipe: 1"),
        (b"- recipe", "recipe: 1"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes | None, named: str) -> None:
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=named):
        read_recipe(path)


def test_a_recipe_is_narrowed_down(tmp_path: Path) -> None:
    some = {**EXPERIMENTS["text"], "plans": ["half"]}
    found = recipe(tmp_path, some, EXPERIMENTS["followed"])
    assert [e.name for e in found.only(["f*"]).experiments] == ["followed"]
    assert [e.settings.items for e in found.limited(2).experiments] == [2, 2]
    assert [e.settings.items for e in found.limited(99).experiments] == [3, 3]
    narrowed = found.with_plans(["no-*"])
    assert [(e.name, e.plans) for e in narrowed.experiments] == [("followed", ("no-attention",))]
    assert list(narrowed.plans) == ["no-attention"]
    assert [e.plans for e in found.with_plans(["dense"]).experiments] == [(), ()]
    for mistake, named in (
        (lambda: found.only(["foresen"]), "foresen"),
        (lambda: found.with_plans(["quarter"]), "quarter"),
        (lambda: found.only(["text"]).with_plans(["no-attention"]), "no-attention"),
    ):
        with pytest.raises(RecipeError, match=named):
            mistake()


def test_the_recipes_of_this_repository_are_read() -> None:
    paths = sorted((ROOT / "recipes").glob("*.yaml"))
    assert paths
    for path in paths:
        found: Recipe = read_recipe(path)
        assert all(experiment.plans for experiment in found.experiments)


def test_griffin_keeps_what_the_paper_varies() -> None:
    found = read_recipe(ROOT / "recipes" / "griffin.yaml")
    keeps = {plan["experts"]["keep"] for plan in found.plans.values()}
    ways = {plan["experts"]["select"] for plan in found.plans.values()}
    assert (keeps, ways) == ({1.0, 0.75, 0.5, 0.25}, {"topk", "magnitude", "random"})
    # None of these figures was read in the paper.
    assert all(e.paper.recalled for e in found.experiments if e.paper is not None)


@pytest.mark.eval
def test_griffin_finds_its_data(shared_eval: Path) -> None:
    found = read_recipe(ROOT / "recipes" / "griffin.yaml")
    check(replace(found, data=shared_eval))
    with pytest.raises(RecipeError, match=r"xsum_1shot\.jsonl"):
        check(replace(found, data=shared_eval / "elsewhere"))


def test_yaml_is_written_as_it_is_read(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path)) == read_recipe(write(tmp_path))
