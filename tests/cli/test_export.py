"""`skimp export`: writing for engines, saying why not, and offering what will do."""

from pathlib import Path

import pytest
from tests.cli.conftest import Skimp, complaint, read


@pytest.fixture
def linear_plan(skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path) -> Path:
    """A plan whose fills the dense family has no place for."""
    words = ("--attention", "1,2", "--fill", "linear:2", "--calibration", text_file)
    skimp("plan", folder, *words, "--out", "linear.yaml")
    return tmp_path / "linear.yaml"


def test_targets_are_listed(skimp: Skimp, folder: Path, tmp_path: Path, linear_plan: Path) -> None:
    listed = skimp("export", "--list", "--json", "all.json").stdout
    targets = read(tmp_path / "all.json")["targets"]
    assert {"transformers", "transformers-plain", "decilm"} <= {each["target"] for each in targets}
    for each in targets:
        assert each["target"] in listed and each["formats"] and each["holds"] and each["lacks"]
    skimp("export", "--list", folder, "--plan", linear_plan, "--json", "one.json")
    found = {each["target"]: each["obstacles"] for each in read(tmp_path / "one.json")["targets"]}
    assert found["transformers"] == [] == found["decilm"]
    assert "drop.fill: a linear map" in found["transformers-plain"][0]


def test_folder_is_written_and_verified(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path
) -> None:
    words = ("export", folder, "--plan", zero_plan, "--to", "transformers", "--out", "out")
    skimp(*words, "--format", "f32", "--verify", "--json", "a.json")
    found = read(tmp_path / "a.json")
    assert found["target"] == "transformers" and found["format"] == "f32"
    assert found["parameters"]["planned"] < found["parameters"]["dense"]
    checked = found["verification"]
    assert checked["passed"] and checked["equal"] == 50 and checked["max_difference"] <= 1e-4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "50 of 50 prompts" in card
    assert "--force" in complaint(skimp(*words, code=2))
    skimp(*words, "--force", "--name", "small")
    assert "# small" in (tmp_path / "out" / "README.md").read_text()
    assert not list(tmp_path.glob(".out*"))


def test_a_planned_folder_brings_its_plan(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path
) -> None:
    skimp("apply", folder, "--plan", zero_plan, "--out", "small")
    skimp("export", "small", "--to", "decilm", "--out", "served")
    assert (tmp_path / "served" / "plan" / "plan.yaml").is_file()
    words = ("export", "small", "--plan", zero_plan, "--to", "decilm", "--out", "again")
    assert "already carries a plan" in complaint(skimp(*words, code=2))


def test_the_nearest_plan_is_written_and_passes(
    skimp: Skimp, folder: Path, tmp_path: Path, linear_plan: Path
) -> None:
    words = ("export", folder, "--plan", linear_plan, "--to", "transformers-plain", "--out", "out")
    said = complaint(skimp(*words, code=2))
    assert "drop.fill" in said and "--nearest FILE" in said
    said = complaint(skimp(*words, "--nearest", "near.yaml", code=2))
    assert "The nearest plan that it can hold is in near.yaml." in said
    assert not (tmp_path / "out").exists()
    skimp("export", folder, "--plan", "near.yaml", *words[4:])
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "o"], "--to TARGET is missing"),
        (["--to", "decilm"], "--out DIR is missing"),
        (["--to", "onnx", "--out", "o"], "there is no target 'onnx'"),
        (["--to", "decilm", "--out", "o", "--format", "q4"], "--format: decilm has no 'q4'"),
        (["--to", "decilm", "--out", "o", "--plan", "none.yaml"], "there is no such plan file"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    skimp: Skimp, folder: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    assert said in complaint(skimp("export", folder, *words, code=2))
    assert not (tmp_path / "o").exists()


def test_missing_engines_are_said(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path
) -> None:
    words = ("export", folder, "--plan", zero_plan, "--to", "decilm", "--out", "out", "--verify")
    said = complaint(skimp(*words, "--engine-python", "nowhere/python", code=2))
    assert "--engine-python" in said and "cannot be run" in said
    assert "MODEL is missing" in complaint(skimp("export", "--to", "decilm", code=2))
    precious = tmp_path / "thesis" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years")
    words = ("export", folder, "--to", "decilm", "--out", "thesis", "--force")
    assert "no model to replace" in complaint(skimp(*words, code=2))
