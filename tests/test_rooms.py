"""Arrows run one way: no room imports one above it (docs/architecture.md)."""

from pathlib import Path

import pytest
from tests.sources import imports

import skimp

ROOT = Path(skimp.__file__).parent
ORDER = ("errors", "progress", "workload", "whole", "kernels", "models", "plan", "calibration")
ORDER += ("methods", "engine", "measure", "finder")
ABOVE = ("recipes", "report", "export", "serve", "cli")  # beside each other, but for cli
BACK = {
    "kernels/build.py": {"models"},  # the cache folder
    "models/load.py": {"plan"},  # a folder that skimp wrote brings its plan
}


def rooms(path: Path) -> set[str]:
    """The rooms that a module imports from."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("skimp.")}


def may_import(room: str) -> set[str]:
    if room in ORDER:
        return set(ORDER[: ORDER.index(room) + 1])
    return {*ORDER, room} | (set(ABOVE) if room == "cli" else set())


@pytest.mark.parametrize("room", [*ORDER, *ABOVE])
def test_a_room_imports_none_above_it(room: str) -> None:
    here = ROOT / room
    files = sorted(here.rglob("*.py")) if here.is_dir() else [here.with_suffix(".py")]
    assert files
    known = {*ORDER, *ABOVE}
    wrong = {}
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        wrong[name] = (rooms(path) & known) - may_import(room) - BACK.get(name, set())
    assert not {name: above for name, above in wrong.items() if above}


def test_every_room_has_its_place() -> None:
    there = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert there - {"__init__"} == {*ORDER, *ABOVE}
