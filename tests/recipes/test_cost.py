"""The kind `cost`: shares and bounds that follow from shapes alone."""

from pathlib import Path
from typing import Any

import pytest
from tests.recipes.kit import recipe, stage

import skimp
from skimp.errors import RecipeError
from skimp.measure.cost import byte_bound
from skimp.measure.shelf import Shelf
from skimp.models.anatomy import Anatomy
from skimp.recipes.outcome import Outcome
from skimp.recipes.run import Result, check, jobs, run
from skimp.workload import Workload

COST: dict[str, Any] = {"kind": "cost", "name": "cost", "workloads": ["8+4x1", "64+4x8"]}
PLANS = {
    "attention": {"drop": {"attention": [1]}},
    "layer": {"drop": {"layers": [1]}},
    "half": {"experts": {"keep": 0.5}},
    "nothing": {"drop": {}},
}


def result(folder: Path) -> tuple[Any, Result]:
    found = recipe(folder, COST, plans=PLANS).limited(1)
    check(found)
    ground, shelf = stage(found), Shelf(folder / "state", Outcome.from_dict)
    (made,) = run(jobs(found, ground, shelf), ground, shelf)
    return ground, made


def test_figures_are_those_of_the_planned_model(tmp_path: Path) -> None:
    ground, made = result(tmp_path)
    assert list(made.cells) == list(PLANS)
    dense = ground.anatomy
    for name in ("attention", "layer"):
        with skimp.apply(ground.model, ground.plans[name]) as applied:
            planned = Anatomy.of(applied.model)
        cells = made.cells[name]
        weights = 1 - planned.weight_bytes / dense.weight_bytes
        assert cells["weights left out"].value == pytest.approx(weights) and weights > 0
        assert cells["KV cache left out"].value == pytest.approx(1 / dense.dense_layers)
        for workload in COST["workloads"]:
            cell = cells[f"byte bound, {workload}"]
            assert cell.value == byte_bound(dense, planned, Workload.parse(workload)) > 1
            assert cell.times and not cell.share


def test_experts_save_bytes_read_but_none_held(tmp_path: Path) -> None:
    cells = result(tmp_path)[1].cells["half"]
    assert cells["weights left out"].value == 0 and cells["byte bound, 8+4x1"].value > 1


def test_what_leaves_nothing_out_is_worth_nothing(tmp_path: Path) -> None:
    cells = result(tmp_path)[1].cells["nothing"]
    bound = cells["byte bound, 8+4x1"]
    assert (bound.value, bound.share, bound.times) == (1, False, True)
    assert cells["weights left out"].value == cells["KV cache left out"].value == 0


@pytest.mark.parametrize("workloads", [["many"], ["0+4x1"], [], None])
def test_bad_workloads_are_named(tmp_path: Path, workloads: Any) -> None:
    with pytest.raises(RecipeError, match=r"experiments\.cost\.workloads"):
        check(recipe(tmp_path, {**COST, "workloads": workloads}, plans=PLANS))
