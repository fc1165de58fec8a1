"""What the README shows is executed, word for word."""

import re
from pathlib import Path

import pytest
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_is_something_to_execute() -> None:
    assert len(python_blocks()) == 1
    assert len(python_blocks()[0].splitlines()) <= 12


@pytest.mark.demo
@pytest.mark.slow
def test_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in python_blocks():
        exec(compile(block, "README.md", "exec"), scope)
    assert (tmp_path / "planned" / "modeling_planned.py").is_file()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
