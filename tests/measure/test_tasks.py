"""Tasks by name, folder and file; and one clear sentence for whatever is wrong with them."""

import re
from pathlib import Path

import pytest
import yaml
from tests.measure import tiny

from skimp.errors import EvaluationError
from skimp.measure import tasks
from skimp.measure.tasks import load_tasks, split_specs

pytestmark = pytest.mark.eval


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    return tiny.write_suite(folder)


def _refused(specs: str) -> str:
    with pytest.raises(EvaluationError) as caught:
        load_tasks(specs)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


def test_a_folder_means_all_its_tasks_wherever_one_stands(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in suite.rglob("*.yaml")}
    found = load_tasks("suite")
    assert sorted(found) == ["tiny_choices", "tiny_ending", "tiny_text"]
    assert len(found["tiny_choices"].eval_docs) == 12
    assert {path: path.read_bytes() for path in suite.rglob("*.yaml")} == before


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("{suite}/tiny_choices.yaml", ["tiny_choices"]),
        ("{suite}:tiny_ending", ["tiny_ending"]),
        ("{suite}:tiny_suite", ["tiny_choices", "tiny_ending"]),
        ("{suite}/tiny_text.yaml, {suite}:tiny_ending", ["tiny_text", "tiny_ending"]),
        ("{suite}:tiny_text,tiny_choices", ["tiny_text", "tiny_choices"]),
        ("{suite}:tiny_text,{suite}:tiny_text", ["tiny_text"]),
    ],
)
def test_files_members_tags_and_lists(suite: Path, spec: str, names: list[str]) -> None:
    assert list(load_tasks(spec.format(suite=suite))) == names


def test_a_group_of_a_folder_changes_its_members(suite: Path) -> None:
    group = {
        "group": "tiny_group",
        "task": [{"task": "tiny_choices", "num_fewshot": 2}, "tiny_text"],
    }
    (suite / "group.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    found = load_tasks(f"{suite}:tiny_group")
    assert list(found) == ["tiny_choices", "tiny_text"]
    assert found["tiny_choices"].config.num_fewshot == 2


def test_included_files_and_functions_work(suite: Path) -> None:
    (suite / "helpers.py").write_text("def text(doc):\n    return doc['query'].upper()\n")
    (suite / "shouted.yaml").write_text(
        "include: tiny_choices.yaml\ntask: shouted\ndoc_to_text: !function helpers.text\n"
    )
    (task,) = load_tasks(f"{suite}/shouted.yaml").values()
    assert task.doc_to_text(task.eval_docs[0]).isupper()


def test_several_files_and_absolute_paths(suite: Path, tmp_path: Path) -> None:
    elsewhere = tiny.write_rows(tmp_path, "more.jsonl", tiny.choice_rows(3))
    files = {"data_files": {"test": ["data/choices.jsonl", str(elsewhere)]}}
    path = tiny.write_task(suite, tiny.CHOICES, task="both", dataset_kwargs=files)
    assert len(load_tasks(str(path))["both"].eval_docs) == 15
    path = tiny.write_task(
        suite,
        tiny.CHOICES,
        task="starred",
        dataset_kwargs={"data_files": {"test": "data/cho*.jsonl"}},
    )
    assert len(load_tasks(str(path))["starred"].eval_docs) == 12


def test_specifications_are_split_and_unrepeated() -> None:
    assert split_specs("a, b,,a") == ["a", "b"]
    assert split_specs(["a,b", "c"]) == ["a", "b", "c"]
    with pytest.raises(EvaluationError, match="none given"):
        split_specs(" , ")


def test_unknown_names_suggest_near_ones(suite: Path) -> None:
    assert re.search(
        r"no task 'tiny_choice'; did you mean tiny_choices", _refused(f"{suite}:tiny_choice")
    )


@pytest.mark.slow
def test_unknown_names_suggest_the_harness_own() -> None:
    assert "did you mean hellaswag" in _refused("helaswag")


def test_missing_places_are_refused(suite: Path) -> None:
    assert "no folder or YAML file" in _refused(f"{suite}/none.yaml")
    assert "no folder or YAML file" in _refused("./nowhere")
    (suite.parent / "empty").mkdir()
    assert "no task YAML" in _refused(str(suite.parent / "empty"))


def test_missing_data_names_task_and_file(suite: Path) -> None:
    (suite / "data" / "choices.jsonl").unlink()
    message = _refused(f"{suite}:tiny_choices")
    assert "tiny_choices" in message and str(suite / "data" / "choices.jsonl") in message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"query": "a", "choices": ["b"], "gold": 0}\n{"query": \n', "line 2 of its data file"),
        ("[1, 2]\n3\n", "line 2 of its data file"),
        ('{"query": "a"}\n5\n', "line 2 of its data file .* must be a JSON object"),
        ("", "is empty"),
        ('{"query": "a", "choices": [], "gold": 0}\n', "no items, or its first has no choices"),
        ('{"other": "a"}\n', "cannot be built"),
    ],
)
def test_malformed_data_names_the_place(suite: Path, content: str, complaint: str) -> None:
    (suite / "data" / "choices.jsonl").write_text(content)
    message = _refused(f"{suite}:tiny_choices")
    assert "tiny_choices" in message
    assert re.search(complaint, message), message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("task: [unclosed\n", r"not valid YAML at line \d"),
        ("- a list\n", "cannot be read"),
        ("output_type: loglikelihood\n", "no `task:` field"),
        ("task: bad\noutput_type: guess\n", "bad .* cannot be built"),
        ("task: bad\ndoc_to_text: !function nowhere.text\n", "cannot be read"),
    ],
)
def test_malformed_yaml_names_the_file(suite: Path, content: str, complaint: str) -> None:
    path = suite / "bad.yaml"
    path.write_text(content)
    message = _refused(str(path))
    assert str(path) in message
    assert re.search(complaint, message), message


def test_the_same_task_twice_in_a_folder_is_refused(suite: Path) -> None:
    (suite / "copy.yaml").write_bytes((suite / "tiny_text.yaml").read_bytes())
    assert "'tiny_text' is defined twice" in _refused(str(suite))


def test_one_name_from_two_places_is_refused(suite: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tiny.write_suite(other)
    message = _refused(f"{suite},{other}:tiny_text")
    assert "'tiny_text'" in message and str(suite) in message and str(other) in message
    assert len(load_tasks(f"{suite},{suite}/tiny_text.yaml")) == 3


def test_data_that_cannot_be_fetched_is_one_sentence(suite: Path) -> None:
    path = tiny.write_task(
        suite, tiny.CHOICES, task="far", dataset_path="no/such", dataset_kwargs=None
    )
    message = _refused(str(path))
    assert "far" in message and "cannot be fetched" in message


def test_without_the_harness_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    assert 'pip install "skimp[eval]"' in _refused("anything")


def test_generators_are_left_as_they_were(suite: Path) -> None:
    import random

    import numpy as np

    random.seed(5)
    np.random.seed(5)
    expected = random.getstate(), np.random.get_state()[1].tolist()
    load_tasks(f"{suite}:tiny_text", seed=3)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == expected


def test_shared_tasks_load_from_anywhere(shared_eval: Path) -> None:
    found = load_tasks(str(shared_eval))
    assert set(found) >= {"local_piqa", "local_arc_easy", "local_lambada", "local_winogrande"}


def test_places_are_told_from_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that happens to be called like a task wins only when it is there."""
    assert tasks._place("hellaswag") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hellaswag").mkdir()
    assert tasks._place("hellaswag") == Path("hellaswag")
