"""`skimp apply`, and what a planned folder is good for."""

from pathlib import Path

from tests.cli.conftest import Skimp, complaint, read


def test_a_planned_folder_is_a_model(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path
) -> None:
    skimp("apply", folder, "--plan", zero_plan, "--out", "small", "--json", "a.json")
    found = read(tmp_path / "a.json")
    assert found["planned"]["parameters"] < found["dense"]["parameters"]
    assert found["folder_bytes"] > 0
    skimp("inspect", "small", "--json", "b.json")
    again = read(tmp_path / "b.json")
    assert again["model"]["parameters"] == found["planned"]["parameters"]
    assert again["plan"]["drop"]["attention"] == [1, 2]


def test_a_planned_folder_takes_no_second_plan(skimp: Skimp, folder: Path, zero_plan: Path) -> None:
    skimp("apply", folder, "--plan", zero_plan, "--out", "small")
    for words in (
        ("bench", "small", "--plan", zero_plan),
        ("plan", "small", "--attention", "0", "--out", "q.yaml"),
        ("apply", "small", "--plan", zero_plan, "--out", "smaller"),
    ):
        assert "already carries a plan" in complaint(skimp(*words, code=2))


def test_only_a_model_is_ever_replaced(
    skimp: Skimp, folder: Path, tmp_path: Path, zero_plan: Path
) -> None:
    words = ("apply", folder, "--plan", zero_plan, "--out", "small")
    skimp(*words)
    assert "--force" in complaint(skimp(*words, code=2))
    skimp(*words, "--force")
    assert (tmp_path / "small" / "config.json").is_file()
    precious = tmp_path / "thesis" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years")
    words = (*words[:-1], "thesis", "--force")
    assert "no model to replace" in complaint(skimp(*words, code=2))
    assert precious.read_text() == "years"
    assert not list(tmp_path.glob(".small*"))
