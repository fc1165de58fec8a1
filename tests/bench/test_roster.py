"""Reading the names of engines, with what stands behind a colon."""

import sys
from pathlib import Path

import pytest
from bench.peering import roster

from skimp.errors import SkimpError


def _read(text: str, **pythons: str | None) -> list[roster.Entry]:
    return roster.read(text, pythons)


def test_the_default_names_known_engines_only() -> None:
    names = [entry.name for entry in _read(roster.DEFAULT)]
    assert names[0] == "transformers"
    assert set(names) <= set(roster.KINDS)


def test_a_list_of_layers_may_hold_commas() -> None:
    first, dropped, last = _read("transformers, llm-drop:3,5-7,9,static")
    assert (first.name, first.argument) == ("transformers", "")
    assert (dropped.name, dropped.argument) == ("llm-drop:3,5-7,9", "3,5-7,9")
    assert last.name == "static"
    assert not dropped.kind.exact
    assert first.kind.exact


def test_a_plan_makes_skimp_something_else_than_dense(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.touch()
    dense, planned = _read(f"skimp,skimp:{plan}")
    assert dense.kind.exact
    assert not planned.kind.exact
    assert planned.argument == str(plan)


def test_engines_with_a_home_run_in_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKIMP_PEERS_LLAMA", raising=False)
    assert _read("llama.cpp")[0].python == sys.executable
    monkeypatch.setenv("SKIMP_PEERS_LLAMA", "/by/variable")
    assert _read("llama.cpp")[0].python == "/by/variable"
    assert _read("llama.cpp", llama="/by/option")[0].python == "/by/option"
    assert _read("transformers", llama="/by/option")[0].python == sys.executable


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" , ", "name at least one"),
        ("vllm", "there is no engine 'vllm'"),
        ("static,transformers,static", "static is named twice"),
        ("llm-drop", "llm-drop needs LAYERS or PLAN"),
        ("static:3", "static takes nothing behind a colon"),
        ("skimp:/no/plan.yaml", "the plan /no/plan.yaml does not exist"),
    ],
)
def test_nonsense_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(SkimpError, match=message):
        _read(text)
