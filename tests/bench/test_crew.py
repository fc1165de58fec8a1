"""Getting engines ready: who is missing and why, and whether those that are there agree."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench.peering.crew import PLACES, Crew
from bench.peering.roster import Entry, Kind

from skimp.errors import SkimpError

_FAKE = Kind("tests.bench.fake_engine", "pip install fake")
_OPTIONS = {"source": "none", "length": 9}


def _entry(name: str, kind: Kind = _FAKE, python: str = sys.executable, **wanted: Any) -> Entry:
    return Entry(name, kind, json.dumps({"name": name, **wanted}), python)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def crew(tmp_path: Path, notes: list[str]) -> Iterator[Crew]:
    with Crew(tmp_path, 1, notes.append) as made:
        yield made


def _names(crew: Crew) -> list[str]:
    return [member.entry.name for member in crew.members]


def _no_export(form: str) -> Path:
    raise AssertionError(form)


def test_who_is_not_installed_is_noted_with_the_remedy(crew: Crew, notes: list[str]) -> None:
    absent = replace(_FAKE, module="bench.engines.no_such")
    crew.hire([_entry("one"), _entry("two", absent), _entry("three", python="/no/python")])
    assert _names(crew) == ["one"]
    assert crew.missing == {
        "three": "/no/python cannot be run (No such file or directory); pip install fake",
        "two": "bench.engines.no_such is not installed; pip install fake",
    }
    assert [note.partition(" ")[0] for note in notes] == ["three", "two"]


@pytest.mark.parametrize("python", [sys.executable, "/no/python"])
def test_without_the_first_there_is_no_run(crew: Crew, python: str) -> None:
    absent = replace(_FAKE, module="bench.engines.no_such")
    with pytest.raises(SkimpError, match=r"one, which the others are .* out: .*pip install fake"):
        crew.hire([_entry("one", absent, python), _entry("two")])


def test_versions_and_what_engines_say_of_themselves_are_kept(crew: Crew) -> None:
    crew.hire([_entry("one")])
    crew.load(_no_export, **_OPTIONS)
    assert crew.members[0].versions["fake"] == "1"
    assert crew.members[0].versions["length"] == "9"


def test_a_file_is_exported_for_those_that_read_one(crew: Crew, tmp_path: Path) -> None:
    asked: list[str] = []

    def export(form: str) -> Path:
        asked.append(form)
        return tmp_path

    crew.hire([_entry("one"), _entry("two", replace(_FAKE, export="bf16"))])
    crew.load(export, **_OPTIONS)
    assert asked == ["bf16"]
    assert _names(crew) == ["one", "two"]


def test_what_cannot_be_exported_is_left_out(crew: Crew) -> None:
    def export(form: str) -> Path:
        raise SkimpError("biases cannot be written.")

    crew.hire([_entry("one"), _entry("two", replace(_FAKE, export="bf16")), _entry("three")])
    crew.load(export, **_OPTIONS)
    assert _names(crew) == ["one", "three"]
    assert crew.missing == {"two": "biases cannot be written"}


def test_agreement_counts_the_places_decided_like_the_first(crew: Crew) -> None:
    crew.hire([_entry("one"), _entry("two"), _entry("three", adds=2)])
    crew.load(_no_export, **_OPTIONS)
    # The third never adds 1, although it is given the first engine's tokens at every place.
    assert crew.agreement([5]) == {"one": PLACES, "two": PLACES, "three": 0}


def test_all_processes_end_with_the_crew(tmp_path: Path) -> None:
    with Crew(tmp_path, 1, lambda _: None) as crew:
        crew.hire([_entry("one"), _entry("two")])
        crew.lose("two", "no longer wanted")
        processes = [member.peer._process for member in crew.members]
    assert [process.returncode for process in processes] == [0]
