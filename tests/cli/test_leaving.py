"""Early exits in `skimp eval` and its report."""

from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Skimp, complaint, read
from tests.cli.test_eval import tasks  # noqa: F401

from skimp.models.anatomy import Anatomy
from skimp.models.load import load
from skimp.plan import Plan


@pytest.fixture
def exit_file(folder: Path, tmp_path: Path) -> Any:
    anatomy = Anatomy.of(load(str(folder)).model)

    def write(bar: float, **fields: Any) -> Path:
        section = {"rule": "threshold", "translator": "plain", "threshold": bar, **fields}
        plan = Plan.empty(anatomy).with_section("exit", {"probe": [0, 2], **section})
        plan.write(tmp_path / "exit.yaml")
        return tmp_path / "exit.yaml"

    return write


@pytest.mark.eval
def test_tasks_and_text_say_where_tokens_leave(
    skimp: Skimp,
    folder: Path,
    text_file: Path,
    tasks: Path,  # noqa: F811
    tmp_path: Path,
    exit_file: Any,
) -> None:
    words = ("--text", text_file, "--tokens", "256", "--window", "64", "--json", "e.json")
    result = skimp("eval", folder, "--exit", exit_file(-1.0), *words, "--tasks", tasks)
    assert "one decision an input" in result.output
    found = read(tmp_path / "e.json")
    exits, layers = found["exits"], found["model"]["layers"]
    assert exits["layers"] == layers and exits["probe"] == [0, 2]
    gone = pytest.approx(1 - 1 / layers)
    # The gap is never negative, so that every token leaves after the first layer.
    assert exits["tasks"]["tiny_choice"]["left_out"] == gone
    assert exits["tasks"]["tiny_choice"]["depths"] == {"1": 1.0}
    assert exits["by_input"]["depths"]["tiny_choice"]["left_out"] == gone
    assert set(exits["by_input"]["tasks"]) == {"tiny_choice"}
    assert exits["text"]["left_out"] == gone and exits["free"]["left_out"] == gone
    assert exits["text"]["agreement_by_depth"] == {"1": exits["text"]["agreement"]}
    assert len(exits["text"]["lens"]) == layers
    assert len(exits["text"]["sample"]["tokens"]) == 63
    assert found["fidelity"]["kl"] is None and found["fidelity"]["perplexity_planned"] > 1
    assert found["fidelity"]["top1_agreement"] == exits["text"]["agreement"]
    skimp("report", "--eval", "e.json", "--out", "r.html")
    html = (tmp_path / "r.html").read_text()
    assert 'id="exits"' in html and "tiny_choice: share of tokens by the layers" in html
    assert html.count('class="depth depth-') >= 63


@pytest.mark.eval
def test_a_bar_never_reached_scores_as_the_dense_model(
    skimp: Skimp,
    folder: Path,
    tasks: Path,  # noqa: F811
    tmp_path: Path,
    exit_file: Any,
) -> None:
    words = ("--tasks", tasks, "--tokens", "0", "--json", "e.json")
    skimp("eval", folder, "--exit", exit_file(float("inf")), *words)
    found = read(tmp_path / "e.json")
    one = found["tasks"]["tiny_choice"]
    assert one["difference"] == 0 and one["dense"] == one["planned"]
    assert found["exits"]["tasks"]["tiny_choice"]["exits"] == 0
    assert found["exits"]["text"] is None and found["exits"]["free"] is None


def test_propagated_caches_are_refused_by_name(
    skimp: Skimp, folder: Path, text_file: Path, exit_file: Any
) -> None:
    words = ("--text", text_file, "--tokens", "128", "--window", "64")
    file = exit_file(0.5, kv="propagate")
    said = complaint(skimp("eval", folder, "--exit", file, *words, code=2))
    assert "exit.kv: propagate" in said and "kv: exact" in said


def test_experts_beside_exits_leave_text_out(
    skimp: Skimp, folder: Path, text_file: Path, exit_file: Any
) -> None:
    words = ("--text", text_file, "--tokens", "128", "--window", "64", "--experts", "0.5")
    said = complaint(skimp("eval", folder, "--exit", exit_file(0.5), *words, code=2))
    assert "--tokens 0" in said


def test_plans_without_exits_say_none(
    skimp: Skimp, folder: Path, text_file: Path, tmp_path: Path, zero_plan: Path
) -> None:
    words = ("--text", text_file, "--tokens", "128", "--window", "64", "--json", "e.json")
    skimp("eval", folder, "--plan", zero_plan, *words)
    assert read(tmp_path / "e.json")["exits"] is None
