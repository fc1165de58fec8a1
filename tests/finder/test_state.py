"""A search's folder: steps once, and nobody else's."""

from pathlib import Path

import pytest

from skimp.errors import SkimpError
from skimp.finder.state import State


def test_a_step_is_done_once(tmp_path: Path) -> None:
    done: list[int] = []

    def step() -> dict[str, float]:
        done.append(1)
        return {"harm": 0.1 + 0.2}

    first = State(tmp_path / "s", {"seed": 1}).remember("a", step)
    again = State(tmp_path / "s", {"seed": 1}).remember("a", step)
    assert first == again == {"harm": 0.1 + 0.2}
    assert len(done) == 1


def test_another_search_is_refused(tmp_path: Path) -> None:
    State(tmp_path / "s", {"seed": 1, "workload": "1+1x1"})
    with pytest.raises(SkimpError, match="another seed"):
        State(tmp_path / "s", {"seed": 2, "workload": "1+1x1"})


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SkimpError, match="other files"):
        State(tmp_path, {"seed": 1})
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_damaged_step_is_named(tmp_path: Path) -> None:
    state = State(tmp_path / "s", {})
    state.remember("a", lambda: 1)
    (tmp_path / "s" / "a.json").write_text("{")
    with pytest.raises(SkimpError, match=r"a\.json is missing or damaged"):
        state.remember("a", lambda: 1)
