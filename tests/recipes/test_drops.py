"""Recipes whose drops a rule chooses, by shares of the layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.recipes.kit import ROOT_RECIPES, TASKS, recipe, stage
from tests.recipes.test_resume import go
from tests.tiny import calibration

from skimp.errors import PlanError, RecipeError
from skimp.finder.choose import choose
from skimp.methods.drop.section import read_section
from skimp.recipes.drops import DropChoice
from skimp.recipes.read import read_recipe
from skimp.recipes.stage import Stage

LAST: dict[str, Any] = {"rule": "last", "part": "attention", "share": 0.5}


def drop(**choice: Any) -> dict[str, Any]:
    return {"drop": {"choose": {**LAST, **choice}, "fill": "zero"}}


@pytest.mark.parametrize(
    ("layers", "counts"), [(32, (8, 11, 16)), (40, (10, 13, 20)), (30, (8, 10, 15))]
)
def test_a_share_is_the_nearest_number_of_layers(layers: int, counts: tuple[int, ...]) -> None:
    found = [DropChoice(part="ffn", share=share).count(layers) for share in (0.25, 0.33, 0.5)]
    assert tuple(found) == counts
    # 0.29 * 50 is 14.499999999999998 in floating point, and 2.5 rounds to 2 in Python.
    assert DropChoice(part="ffn", share=0.29).count(50) == 15
    assert DropChoice(part="ffn", share=0.25).count(10) == 3


@given(
    layers=st.integers(1, 80),
    percent=st.integers(1, 100),
    keep_last=st.none() | st.integers(0, 10),
    part=st.sampled_from(["attention", "ffn", "layer"]),
)
def test_a_count_may_always_be_left_out(
    layers: int, percent: int, keep_last: int | None, part: Any
) -> None:
    choice = DropChoice(part=part, share=percent / 100, keep_last=keep_last)
    try:
        count = choice.count(layers)
    except PlanError as error:
        assert str(error).startswith("drop.choose.share: ")
        return
    assert abs(count - layers * percent / 100) <= 0.5 + 1e-6
    assert 1 <= count <= layers - choice.kept(layers)
    assert part == "ffn" or count < layers


@pytest.mark.parametrize("part", ["attention", "ffn", "layer"])
@pytest.mark.parametrize("keep_last", [0, 1])
def test_the_last_ones_go_and_no_text_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, keep_last: int
) -> None:
    def never(self: Stage) -> Any:
        raise AssertionError("text was made")

    monkeypatch.setattr("skimp.recipes.stage.Stage._text", never)
    plans = {"x": drop(part=part, keep_last=keep_last)}
    found = stage(recipe(tmp_path, TASKS, plans=plans))
    layers = found.anatomy.dense_layers
    end = layers - keep_last
    expected = tuple(range(end - found.choices["x"].count(layers), end))
    section = read_section(found.fitted("x").sections["drop"])
    assert expected
    assert section.attention == (() if part == "ffn" else expected)
    assert section.ffn == (() if part == "attention" else expected)
    assert not section.repairs and section.fill.name == "zero"


def test_a_rule_that_reads_text_chooses_as_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = calibration(count=30, longest=30)
    monkeypatch.setattr("skimp.recipes.stage.Stage._text", lambda self: text)
    choice = {**LAST, "rule": "greedy", "harm": "loss"}
    chosen = {"choose": choice, "fill": "linear:2", "repair": "full"}
    found = stage(recipe(tmp_path, TASKS, plans={"x": {"drop": chosen}}), seed=3)
    count = found.choices["x"].count(found.anatomy.dense_layers)
    expected = choose(
        found.model,
        None,
        rule="greedy",
        drop_attention=count,
        fill="linear:2",
        harm="loss",
        calibration=text,
        seed=3,
    ).plan
    asked: list[Any] = []

    def asking(*args: Any, **settings: Any) -> Any:
        asked.append(settings["harm"])
        return choose(*args, **settings)

    monkeypatch.setattr("skimp.recipes.drops.choose", asking)
    monkeypatch.setattr("skimp.recipes.stage.fit_plan", None)  # not to be fitted twice
    made = found.fitted("x")
    assert found.fitted("x") is made and asked == ["loss"]
    assert made.sections["drop"] == expected.sections["drop"]
    assert made.values.keys() == expected.values.keys() != set()
    assert all(torch.equal(value, expected.values[key]) for key, value in made.values.items())
    assert made.evidence["calibration"]["source"] == "random tokens"


def test_what_is_chosen_joins_the_other_sections(tmp_path: Path) -> None:
    plans = {"x": {**drop(), "experts": {"keep": 0.5}}}
    found = stage(recipe(tmp_path, TASKS, plans=plans))
    made = found.fitted("x")
    assert made.sections["experts"] == {"keep": 0.5} and made.sections["drop"]["attention"]
    engine = found.engine("x")
    assert len(engine.generate([[5, 6, 7]], 3)[0].tokens) == 3


@pytest.mark.eval
def test_tasks_are_those_of_the_same_plan_by_hand(tmp_path: Path) -> None:
    layers = stage(recipe(tmp_path, TASKS)).anatomy.dense_layers
    by_hand = {"attention": list(range(layers))[-DropChoice(**LAST).count(layers) :]}
    plans = {"chosen": drop(), "listed": {"drop": by_hand}, "other": drop(part="ffn")}
    _, (result,) = go(tmp_path, recipe(tmp_path, TASKS, plans=plans))
    outcomes = result.outcomes
    assert outcomes["chosen"].metrics == outcomes["listed"].metrics
    assert outcomes["chosen"].details["drop"]["attention"] == by_hand["attention"]
    assert "drop" not in outcomes["listed"].details
    assert outcomes["other"].details["drop"]["ffn"] == by_hand["attention"]


@pytest.mark.parametrize(
    ("section", "named"),
    [
        (drop(rule="lst")["drop"], r"drop\.choose\.rule: there is no rule 'lst'; .*'last'"),
        (drop(part="layers")["drop"], r"drop\.choose\.part: .*'layer'"),
        (drop(share=25)["drop"], r"drop\.choose\.share: .* 1\."),
        (drop(share=0)["drop"], r"drop\.choose\.share: "),
        (drop(share="half")["drop"], r"drop\.choose\.share: "),
        (drop(keep_last=-1)["drop"], r"drop\.choose\.keep_last: "),
        (drop(keep=1)["drop"], r"drop\.choose\.keep: "),
        ({"choose": {"rule": "last"}}, r"drop\.choose\.part: "),
        ({"choose": 0.25}, r"drop\.choose: .*named settings"),
        ({"choose": LAST, "ffn": [1]}, r"drop\.choose: .*ffn lists them too"),
        ({"choose": LAST, "fill": "glue"}, r"drop\.fill: "),
    ],
)
def test_bad_choices_are_named_when_the_recipe_is_read(
    tmp_path: Path, section: Any, named: str
) -> None:
    with pytest.raises(RecipeError, match=rf"^recipe\.yaml: plans\.x\.{named}") as caught:
        recipe(tmp_path, TASKS, plans={"x": {"drop": section}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"share": 0.01}, "is none; give at least 0."),
        ({"share": 0.9, "keep_last": 2}, "lower share or keep_last"),
        ({"share": 1.0}, "at least one attention sublayer must stay"),
        ({"share": 1.0, "part": "layer"}, "at least one attention sublayer must stay"),
    ],
)
def test_choices_that_do_not_fit_the_model_are_named(
    tmp_path: Path, choice: dict[str, Any], named: str
) -> None:
    found = recipe(tmp_path, TASKS, plans={"x": drop(**choice)})
    with pytest.raises(RecipeError, match=r"plans\.x\.drop\.choose\.share: ") as caught:
        stage(found)
    assert named in str(caught.value)


def test_tyukin_varies_what_the_papers_do() -> None:
    found = read_recipe(ROOT_RECIPES / "tyukin.yaml")
    chosen = {name: plan["drop"]["choose"] for name, plan in found.plans.items()}
    last = [choice for choice in chosen.values() if choice["rule"] == "last"]
    ways = {(c["part"], c["share"], c["keep_last"]) for c in last}
    parts, shares = ("attention", "ffn", "layer"), (0.25, 0.33, 0.5)
    assert ways == {(part, share, keep) for part in parts for share in shares for keep in (0, 1)}
    assert len(last) == len(ways)
    # The papers' own runs fit nothing, and can be had without the choice that is not theirs.
    for experiment in found.only(["tasks", "last-word", "bytes"]).experiments:
        assert all(chosen[plan]["rule"] == "last" for plan in experiment.plans)
        assert all(found.plans[plan]["drop"]["fill"] == "zero" for plan in experiment.plans)
