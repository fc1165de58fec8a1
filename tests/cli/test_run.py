"""`skimp run`."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.conftest import Skimp, complaint, read
from tests.recipes.kit import EXPERIMENTS, TASK, TASKS, write

from skimp.cli.figures import points, times
from skimp.recipes.experiments.prompted import Asked
from skimp.recipes.experiments.summaries import Written

FAST = (EXPERIMENTS["summaries"], EXPERIMENTS["followed"])


def test_every_experiment_stands_beside_dense_and_paper(
    skimp: Skimp, folder: Path, tmp_path: Path
) -> None:
    path = write(tmp_path, {**FAST[0], "title": "In [bold/] brackets"}, FAST[1])
    result = skimp("run", path, "--model", folder, "--json", "r.json")
    for text in (
        "In [bold/] brackets",
        "A tiny recipe",
        "Nobody, 2024",
        "to measure",
        "ROUGE-1",
        "27.2%",
        "recalled",
    ):
        assert text in result.stdout
    found = read(tmp_path / "r.json")
    assert found["recipe"]["title"] == "A tiny recipe"
    assert found["plans"]["half"] == {"experts": {"keep": 0.5}}
    summaries, followed = found["experiments"].values()
    assert summaries["items"] == 3
    assert summaries["paper"]["figures"]["rouge1"]["half"] == 0.248
    half = summaries["plans"]["half"]
    assert len(half["items"]["rouge1"]["scores"]) == 3
    assert len(half["details"]["answers"]) == 3
    cell = half["metrics"]["rouge2"]
    assert cell["difference"] == pytest.approx(cell["value"] - cell["dense"])
    assert list(followed["plans"]) == ["half", "no-attention"]
    assert followed["plans"]["half"]["metrics"]["kl"]["value"] > 0
    assert not half["kept"]

    skimp("run", path, "--model", folder, "--json", "again.json")
    again = read(tmp_path / "again.json")
    for name, experiment in again["experiments"].items():
        for plan, outcome in experiment["plans"].items():
            assert outcome == {**found["experiments"][name]["plans"][plan], "kept": True}
    assert (tmp_path / "cache" / "recipes").is_dir()


def test_a_part_of_a_recipe(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, *FAST)
    words = ("--only", "summaries", "--plans", "no-*", "--limit", "2", "--state", "kept")
    result = skimp("run", path, "--model", folder, *words, "--json", "r.json")
    assert "half" not in result.stdout
    found = read(tmp_path / "r.json")
    assert list(found["experiments"]) == ["summaries"]
    assert list(found["experiments"]["summaries"]["plans"]) == ["dense", "no-attention"]
    assert (found["limit"], found["experiments"]["summaries"]["items"]) == (2, 2)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_an_interrupt_says_how_to_go_on(
    skimp: Skimp, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, FAST[0])
    measure = Written.measure

    def interrupted(self: Asked, plan: str) -> Any:
        if plan == "half":
            raise KeyboardInterrupt
        return measure(self, plan)  # type: ignore[arg-type]

    words = ("run", path, "--model", folder, "--state", "kept", "--json", "r.json")
    with monkeypatch.context() as patch:
        patch.setattr(Written, "measure", interrupted)
        result = skimp(*words, code=130)
    assert "1 of 3 results are kept in kept" in " ".join(result.stderr.split())
    assert not (tmp_path / "r.json").exists()
    skimp(*words)
    plans = read(tmp_path / "r.json")["experiments"]["summaries"]["plans"]
    assert [plan["kept"] for plan in plans.values()] == [True, False, False]
    skimp(*words, "--fresh")
    plans = read(tmp_path / "r.json")["experiments"]["summaries"]["plans"]
    assert not any(plan["kept"] for plan in plans.values())


def test_data_of_ones_own(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, FAST[1], data="elsewhere")
    words = ("run", path, "--model", folder)
    text = complaint(skimp(*words, code=2))
    assert "elsewhere/text.txt" in text
    assert "--data" in text
    skimp(*words, "--data", tmp_path / "data")


@pytest.mark.eval
def test_tasks(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, TASKS)
    result = skimp("run", path, "--model", folder, "--plans", "no-*", "--json", "r.json")
    assert "tiny_choice" in result.stdout
    found = read(tmp_path / "r.json")["experiments"]["choices"]["plans"]["no-attention"]
    assert list(found["metrics"]) == ["tiny_choice", "tiny_other", "mean"]
    (tmp_path / "data" / "tasks").rename(tmp_path / "gone")
    assert "task YAMLs" in complaint(skimp("run", path, "--model", folder, code=2))


@pytest.mark.eval
def test_no_name_and_no_number_of_a_wide_table_is_cut_off(
    skimp: Skimp, folder: Path, tmp_path: Path
) -> None:
    name = "without-any-attention-0.5"
    many = [f"tiny_{number}" for number in range(7)]
    cost = {"kind": "cost", "name": "cost", "workloads": ["8+4x1"]}
    plans = {name: {"drop": {"attention": [1]}}}
    path = write(tmp_path, {**TASKS, "tasks": many}, cost, plans=plans)
    for task in many:
        (tmp_path / "data" / "tasks" / f"{task}.yaml").write_text(
            yaml.safe_dump({**TASK, "task": task})
        )
    result = skimp("run", path, "--model", folder, "--json", "r.json")
    assert result.stdout.count(name) == 2
    cells = read(tmp_path / "r.json")["experiments"]["choices"]["plans"][name]["metrics"]
    assert len(cells) == len(many) + 1
    low, high = cells["tiny_0"]["interval"]
    # Broken over lines perhaps, but all there, in each column.
    flat = " ".join(result.stdout.split())
    for bound in (low, high):
        assert flat.count(points(bound)) >= len(many)
    assert "Worked out for 8+4x1, not measured." in flat
    bound = read(tmp_path / "r.json")["experiments"]["cost"]["plans"][name]["metrics"]
    cell = bound["byte bound, 8+4x1"]
    assert cell["times"] and times(cell["value"]) in flat


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--only", "dreams"], "dreams"),
        (["--plans", "quarter"], "quarter"),
        (["--limit", "0"], "--limit"),
        (["--data", "no/folder"], "no/folder"),
        (["--state", "recipe.yaml"], "--state"),
        (["--json", "no/r.json"], "--json"),
    ],
)
def test_mistakes_are_named_before_the_model_is_loaded(
    skimp: Skimp, tmp_path: Path, words: list[str], named: str
) -> None:
    path = write(tmp_path, *FAST)
    assert named in complaint(skimp("run", path, "--model", "./no/model", *words, code=2))


def test_a_missing_recipe_is_named(skimp: Skimp) -> None:
    assert "no.yaml" in complaint(skimp("run", "no.yaml", code=2))


def test_what_does_not_fit_the_model_is_named(skimp: Skimp, folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path, FAST[0], plans={"half": {"drop": {"attention": [9], "fill": "zero"}}})
    text = complaint(skimp("run", path, "--model", folder, code=2))
    assert "recipe.yaml: plans.half" in text
    path = write(tmp_path, FAST[0])
    text = complaint(skimp("run", path, "--model", "random:smollm2-135m,layers=1", code=2))
    assert "tokenizer" in text
