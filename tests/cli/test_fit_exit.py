"""`skimp fit-exit`, and `--exit` where its plan is used."""

from pathlib import Path

import pytest
import torch
from tests.cli.conftest import Skimp, complaint, read

from skimp.cli.common import with_exit
from skimp.errors import PlanError
from skimp.models.anatomy import Anatomy
from skimp.models.load import load
from skimp.plan import Plan


@pytest.fixture(scope="session")
def long_text(text_file: Path) -> Path:
    path = text_file.with_name("long.txt")
    path.write_text(text_file.read_text() * 6)
    return path


def test_a_plan_a_table_and_a_document_come_out(
    skimp: Skimp, folder: Path, long_text: Path, tmp_path: Path
) -> None:
    words = ("fit-exit", folder, "--data", long_text, "--out", "exit.yaml", "--json", "exit.json")
    more = ("--probe", "1,3", "--rule", "crf", "--candidates", "40", "--screen", "3")
    result = skimp(*words, *more, "--agreement", "0.6", "--workload", "8+8x1")
    assert "layers left out" in result.output and "as published" in result.output
    document, plan = read(tmp_path / "exit.json"), Plan.read(tmp_path / "exit.yaml")
    assert document["exit"] == plan.sections["exit"]
    assert document["exit"]["probe"] == [1, 3] and document["exit"]["agreement"] == 0.6
    assert [each["agreement"] for each in document["levels"]] == [0.99, 0.95, 0.9, 0.6]
    assert [each["agreement"] for each in document["plain"]] == [0.99, 0.95, 0.9, 0.6]
    for each in document["levels"]:
        assert each["threshold"] is None or each["at_least"] >= each["agreement"]
        assert len(each["exits"]) == 2 and 0 <= each["left_out"] <= 0.5
    assert document["reason"] is None and document["workload"] == "8+8x1"
    assert sum(document["documents"].values()) == document["calibration"]["documents"]
    assert plan.evidence["exit"]["levels"] == document["levels"]
    assert plan.values["exit.screen.states.tokens"].shape == (3, 40)


def test_probes_that_do_not_pay_are_left_out_and_that_is_said(
    skimp: Skimp, folder: Path, long_text: Path, tmp_path: Path
) -> None:
    """Layers of this size cost nothing beside a probe's small operations."""
    result = skimp("fit-exit", folder, "--data", long_text, "--out", "exit.yaml")
    assert "No layer is probed" in result.output
    assert Plan.read(tmp_path / "exit.yaml").sections["exit"]["probe"] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--out"),
        (("--out", "exit.json"), "--out"),
        (("--out", "e.yaml", "--rule", "tree"), "--rule: 'tree' is none of threshold, svm, crf"),
        (("--out", "e.yaml", "--agreement", "99"), "--agreement"),
        (("--out", "e.yaml", "--candidates", "1"), "--candidates"),
        (("--out", "e.yaml", "--screen", "0"), "--screen"),
        (("--out", "e.yaml", "--translator", "half"), "exit.translator"),
        (("--out", "e.yaml", "--probe", "x"), "--probe"),
        (("--out", "e.yaml", "--data", "none.txt"), "--data: there is no file none.txt"),
    ],
)
def test_bad_options_are_named_before_anything_is_loaded(
    skimp: Skimp, words: tuple[str, ...], says: str
) -> None:
    assert says in complaint(skimp("fit-exit", "no-such-model", *words, code=2))


def test_a_layer_that_is_not_there_is_named(skimp: Skimp, folder: Path, long_text: Path) -> None:
    words = ("fit-exit", folder, "--data", long_text, "--out", "e.yaml", "--probe", "9")
    assert "exit.probe: there is no layer 9" in complaint(skimp(*words, code=2))


def test_text_that_is_too_short_to_split_is_refused(
    skimp: Skimp, folder: Path, text_file: Path
) -> None:
    short = text_file.with_name("short.txt")
    short.write_text(text_file.read_text())
    words = ("fit-exit", folder, "--data", short, "--out", "e.yaml")
    assert "give a longer text" in complaint(skimp(*words, code=2))


def test_exits_join_another_plan(folder: Path, tmp_path: Path) -> None:
    anatomy = Anatomy.of(load(str(folder)).model)
    value = torch.ones(2)
    fitted = Plan.empty(anatomy).with_section("exit", {"probe": [3]})
    fitted = fitted.with_values({"exit.rule.3.bias": value, "drop.x": value + 1})
    fitted.with_evidence(exit={"seen": 1}, rule="greedy").write(tmp_path / "exit.yaml")
    other = Plan.empty(anatomy).with_section("drop", {"layers": [1]})
    made = with_exit(other, tmp_path / "exit.yaml", anatomy)
    assert dict(made.sections) == {"drop": {"layers": [1]}, "exit": {"probe": [3]}}
    assert list(made.values) == ["exit.rule.3.bias"] and made.evidence == {"exit": {"seen": 1}}
    assert with_exit(None, None, anatomy) is None
    with pytest.raises(PlanError, match="the plan has exits of its own"):
        with_exit(made, tmp_path / "exit.yaml", anatomy)
    other.write(tmp_path / "drop.yaml")
    with pytest.raises(PlanError, match="has no `exit` section"):
        with_exit(None, tmp_path / "drop.yaml", anatomy)
