"""Finished results are kept and taken up, and only where nothing they hang on has changed."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.kit import EXPERIMENTS, PLANS, TASKS, recipe, stage

from skimp.errors import SkimpError
from skimp.measure import shelf as shelf_module
from skimp.measure.metrics import Metric
from skimp.measure.shelf import Shelf
from skimp.recipes.outcome import Figure, Outcome
from skimp.recipes.run import jobs, run

SOME = (EXPERIMENTS["text"], EXPERIMENTS["followed"])


def go(
    folder: Path, found: Any, *, stop: int | None = None, fresh: bool = False, **options: Any
) -> tuple[list[str], Any]:
    """Run; which units were measured, and the results. `stop`: interrupted in the n-th unit."""
    ground, shelf = stage(found, **options), Shelf(folder / "state", Outcome.from_dict, fresh=fresh)
    measured: list[str] = []

    def begins(unit: Any) -> None:
        if stop == len(measured):
            raise KeyboardInterrupt
        measured.append(f"{unit.experiment}/{unit.plan}")

    try:
        return measured, run(jobs(found, ground, shelf), ground, shelf, begins=begins)
    except KeyboardInterrupt:
        return measured, None


def timeless(results: Any) -> Any:
    return [{plan: replace(o, seconds=0.0) for plan, o in r.outcomes.items()} for r in results]


ALL = [
    "text/dense",
    "text/half",
    "text/no-attention",
    "followed/half",
    "followed/no-attention",
]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    found = recipe(tmp_path, *SOME)
    assert go(tmp_path, found, stop=2) == (ALL[:2], None)
    assert len(list((tmp_path / "state").iterdir())) == 2
    measured, results = go(tmp_path, found)
    assert measured == ALL[2:]
    again, kept = go(tmp_path, found)
    assert again == []
    assert timeless(kept) == timeless(results)
    assert [r.cells for r in kept] == [r.cells for r in results]
    fresh, anew = go(tmp_path, found, fresh=True)
    assert fresh == ALL
    assert timeless(anew) == timeless(results)


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"title": "Another", "paper": {"citation": "Else"}}, []),
        ({"plans": {"half": PLANS["half"], "no-attention": {"drop": {"attention": [2]}}}}, "no-"),
        ({"experiments": [{**SOME[0], "name": "renamed"}, SOME[1]]}, []),
        ({"experiments": [{**SOME[0], "items": 2}, SOME[1]]}, "text"),
        ({"experiments": [{**SOME[0], "new_tokens": 5}, SOME[1]]}, "text"),
    ],
)
def test_only_what_results_hang_on_counts(tmp_path: Path, change: Any, anew: Any) -> None:
    go(tmp_path, recipe(tmp_path, *SOME))
    measured, _ = go(tmp_path, recipe(tmp_path, *SOME, **change))
    assert measured == [unit for unit in ALL if anew and anew in unit]


def test_other_weights_seeds_data_and_code_are_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recipe(tmp_path, SOME[0])
    go(tmp_path, found)
    assert len(go(tmp_path, found, weights=1)[0]) == 3
    assert len(go(tmp_path, found, seed=1)[0]) == 3
    text = tmp_path / "data" / "text.txt"
    before = text.read_text()
    text.write_text(before.replace("river", "water"))
    assert len(go(tmp_path, found)[0]) == 3
    text.write_text(before)
    text.rename(tmp_path / "data" / "moved.txt")
    settings = replace(found.experiments[0].settings, file="moved.txt")
    moved = replace(found, experiments=(replace(found.experiments[0], settings=settings),))
    assert go(tmp_path, moved)[0] == []
    monkeypatch.setattr("skimp.recipes.run.surroundings", lambda: {"skimp": "other"})
    assert len(go(tmp_path, moved)[0]) == 3


@pytest.mark.eval
def test_the_items_of_tasks_count_as_data(tmp_path: Path) -> None:
    found = recipe(tmp_path, TASKS, plans={"half": PLANS["half"]})
    assert len(go(tmp_path, found)[0]) == 2
    assert go(tmp_path, found)[0] == []
    items = tmp_path / "data" / "tasks" / "items.jsonl"
    items.write_text(items.read_text().replace("river", "water"))
    assert len(go(tmp_path, found)[0]) == 2


def damaged(path: Path) -> Iterator[str]:
    whole = path.read_text()
    yield whole[: len(whole) // 2]
    yield "[]"
    data = json.loads(whole)
    yield json.dumps({**data, "skimp_result": 0})
    yield json.dumps({**data, "key": {}})
    metric = data["result"]["metrics"]["perplexity"]
    yield json.dumps(
        {**data, "result": {**data["result"], "metrics": {"p": {**metric, "scores": []}}}}
    )


def test_a_damaged_result_is_measured_anew(tmp_path: Path) -> None:
    found = recipe(tmp_path, SOME[0], plans={"half": PLANS["half"]}).with_plans(["dense"])
    _, results = go(tmp_path, found)
    (file,) = (tmp_path / "state").iterdir()
    for content in damaged(file):
        file.write_text(content)
        measured, again = go(tmp_path, found)
        assert measured == ["text/dense"], content
        assert timeless(again) == timeless(results)


def test_outcomes_survive_the_disk_exactly(tmp_path: Path) -> None:
    outcome = Outcome(
        {"m": Metric("mean", True, (0.1, 1 / 3), (1.0, 1.0))},
        {"f": Figure(0.3, (0.1, float("inf")), False), "g": Figure(1.0, None, True)},
        {"answers": [{"text": "é\u2028"}]},
        1.5,
    )
    shelf = Shelf(tmp_path, Outcome.from_dict)
    shelf.put({"a": (1, 2)}, outcome)
    assert shelf.take({"a": [1, 2]}) == outcome
    assert shelf.take({"a": [1, 3]}) is None


def test_a_shelf_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SkimpError, match="--state"):
        Shelf(tmp_path / "file", Outcome.from_dict).put({}, Outcome())


def test_the_code_that_computes_is_part_of_every_key() -> None:
    found = shelf_module.surroundings()
    assert len(found["skimp"]) == 32
    assert found["torch"]


@pytest.mark.parametrize("fresh", [False, True])
def test_what_two_experiments_share_is_measured_once(tmp_path: Path, fresh: bool) -> None:
    first = {**EXPERIMENTS["text"], "name": "first", "title": "Other words", "plans": ["half"]}
    found = recipe(tmp_path, first, EXPERIMENTS["text"])
    work = jobs(found, stage(found), Shelf(tmp_path / "state", Outcome.from_dict))
    assert [[unit.repeats for unit in job.units] for job in work] == [
        [False, False],
        [True, True, False],
    ]
    for turn in ("first", "second"):
        measured, (one, other) = go(tmp_path, found, fresh=fresh)
        expected = ["first/dense", "first/half", "text/no-attention"]
        assert measured == (expected if fresh or turn == "first" else [])
        assert other.outcomes["half"] == one.outcomes["half"]
        assert other.cells["half"] == one.cells["half"]
