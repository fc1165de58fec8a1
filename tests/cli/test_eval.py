"""`skimp eval`."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint, read

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {test: items.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks"
    path.mkdir()
    (path / "tiny.yaml").write_text(TASK)
    items = [
        {"query": f"The bridge {n}", "choices": [" is old", " was new", " fell"], "gold": n % 3}
        for n in range(8)
    ]
    (path / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return path


def test_fidelity_on_a_text(
    skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path, zero_plan: Path
) -> None:
    words = ("--text", text_file, "--tokens", "256", "--window", "64", "--json", "e.json")
    result = skimp("eval", folder, "--plan", zero_plan, *words)
    assert "perplexity, planned" in result.stdout
    found = read(tmp_path / "e.json")
    fidelity = found["fidelity"]
    assert fidelity["kl"] > 0
    assert 0 <= fidelity["top1_agreement"] < 1
    assert fidelity["documents"] == 4
    assert found["tasks"] == {}
    assert found["held_out"] == text_file.name
    assert found["plan"]["drop"]["attention"] == [1, 2]


def test_without_a_plan_only_the_dense_model_is_measured(
    skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path
) -> None:
    words = ("--text", text_file, "--tokens", "128", "--window", "64", "--json", "e.json")
    skimp("eval", folder, *words)
    fidelity = read(tmp_path / "e.json")["fidelity"]
    assert fidelity["perplexity_dense"] > 1
    assert fidelity["perplexity_planned"] is None
    assert fidelity["kl"] is None


def test_several_plans_stand_side_by_side(
    skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path, zero_plan: Path
) -> None:
    skimp("plan", folder, "--attention", "0", "--fill", "zero", "--out", "other.yaml")
    words = ("--text", text_file, "--tokens", "128", "--window", "64", "--json", "e.json")
    skimp("eval", folder, "--plan", zero_plan, "--plan", "other.yaml", *words)
    found = read(tmp_path / "e.json")
    assert list(found["plans"]) == ["plan", "other"]
    assert found["plans"]["plan"]["fidelity"] == found["fidelity"]
    assert found["plans"]["other"]["plan"]["drop"]["attention"] == [0]
    assert found["plans"]["other"]["fidelity"]["kl"] != found["fidelity"]["kl"]
    skimp("report", "--eval", "e.json", "--out", "r.html")
    assert "other" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
def test_text_it_writes_itself_is_not_that_of_calibration(
    skimp: Skimp, folder: Path, tmp_path: Path
) -> None:
    words = ("--attention", "1", "--fill", "mean", "--seed", "1000003", "--out", "p.yaml")
    skimp("plan", folder, *words)
    words = ("--plan", "p.yaml", "--tokens", "256", "--json", "e.json")
    skimp("eval", folder, *words)
    assert "seed 1000004" in read(tmp_path / "e.json")["held_out"]


@pytest.mark.eval
def test_tasks_are_paired(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path, tasks: Path
) -> None:
    words = ("--tasks", tasks, "--tokens", "0", "--limit", "6", "--json", "e.json")
    result = skimp("eval", folder, "--plan", zero_plan, *words)
    assert "tiny_choice" in result.stdout
    found = read(tmp_path / "e.json")
    task = found["tasks"]["tiny_choice"]
    assert (task["metric"], task["items"]) == ("acc", 6)
    assert task["difference"] == pytest.approx(task["planned"] - task["dense"])
    low, high = task["interval"]
    assert low <= task["difference"] <= high
    assert found["fidelity"] is None
    skimp("eval", folder, *words)
    alone = read(tmp_path / "e.json")["tasks"]["tiny_choice"]
    assert alone["dense"] == task["dense"]
    assert alone["planned"] is None


@pytest.mark.eval
def test_experts_are_scored_in_simulated_generation(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path, tasks: Path
) -> None:
    words = ("--tasks", tasks, "--tokens", "0", "--json", "e.json")
    result = skimp("eval", folder, "--experts", "0.3", *words)
    assert "simulated generation" in result.stdout
    assert "FF neurons kept: 30% of each layer" in result.stdout
    found = read(tmp_path / "e.json")
    assert found["simulated"] is True
    assert found["tasks"]["tiny_choice"]["items"] == 8
    skimp("report", "--eval", "e.json", "--out", "r.html")
    assert "simulated generation mode" in (tmp_path / "r.html").read_text()
    result = skimp("eval", folder, "--experts", "1", *words)
    assert "simulated generation" not in result.stdout
    whole = read(tmp_path / "e.json")
    assert whole["simulated"] is False
    assert whole["tasks"]["tiny_choice"]["planned"] == whole["tasks"]["tiny_choice"]["dense"]
    both = tmp_path / "both.yaml"
    both.write_text(zero_plan.read_text() + "experts: {keep: 0.5, select: random}\n")
    skimp("eval", folder, "--plan", zero_plan, "--plan", both, *words)
    found = read(tmp_path / "e.json")
    assert [found["plans"][name]["simulated"] for name in ("plan", "both")] == [False, True]


@pytest.mark.eval
def test_experts_are_not_scored_on_generated_text(skimp: Skimp, folder: Path, tasks: Path) -> None:
    (tasks / "tiny.yaml").write_text(
        TASK.replace("multiple_choice", "generate_until")
        .replace("doc_to_choice: choices\n", "")
        .replace('"{{query}}"', '"{{query}}"\ngeneration_kwargs: {max_gen_toks: 4, until: ["."]}')
        .replace("doc_to_target: gold", "doc_to_target: query")
        .replace("metric: acc", "metric: exact_match")
    )
    words = ("--tasks", tasks, "--tokens", "0", "--limit", "2")
    skimp("eval", folder, *words)
    said = complaint(skimp("eval", folder, "--experts", "0.5", *words, code=2))
    assert "tiny_choice" in said and "generate_until" in said


@pytest.mark.eval
def test_unknown_tasks_are_named_before_the_model_is_loaded(skimp: Skimp) -> None:
    words = ("eval", "./no/model", "--tasks", "./no/tasks")
    assert "no/tasks" in complaint(skimp(*words, code=2))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--tokens", "0"], "nothing to evaluate"),
        (["--text", "no.txt"], "no.txt"),
        (["--limit", "0"], "--limit"),
        (["--window", "1"], "--window"),
        (["--plan", "no.yaml"], "no.yaml"),
    ],
)
def test_mistakes_are_named(skimp: Skimp, words: list[str], named: str) -> None:
    assert named in complaint(skimp("eval", "./no/model", *words, code=2))


def test_random_weights_cannot_be_evaluated(skimp: Skimp) -> None:
    words = ("eval", "random:smollm2-135m,layers=1")
    assert "tokenizer" in complaint(skimp(*words, code=2))


def test_finished_tasks_are_kept(
    skimp: Skimp, folder: Path, tasks: Path, zero_plan: Path, tmp_path: Path
) -> None:
    """Until what they hang on changes; the figures are the same, and no model is asked again."""
    (tasks / "other.yaml").write_text(TASK.replace("tiny_choice", "other_choice"))
    words = ("--tasks", tasks, "--tokens", "0", "--state", "kept", "--json", "e.json")

    def scored(*more: str | Path) -> tuple[int, dict]:
        result = skimp("eval", folder, "--plan", zero_plan, *words, *more)
        said = result.stderr + result.stdout
        return said.count("was scored before"), read(tmp_path / "e.json")["tasks"]

    first = scored()
    assert first[0] == 0 and set(first[1]) == {"tiny_choice", "other_choice"}
    assert len(list((tmp_path / "kept").iterdir())) == 4
    assert scored() == (4, first[1])
    assert scored("--fresh") == (0, first[1])
    assert scored("--limit", "5")[0] == 0
    items = (tasks / "items.jsonl").read_text()
    (tasks / "items.jsonl").write_text(items.replace("bridge 3", "bridge three"))
    assert scored()[0] == 0
    assert scored()[0] == 4
    for kept in (tmp_path / "kept").iterdir():
        kept.write_text("{}")
    assert scored()[0] == 0
