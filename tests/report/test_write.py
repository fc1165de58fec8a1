"""Writing: whole or not at all."""

from pathlib import Path

import pytest
from tests.report import documents

from skimp.errors import SkimpError
from skimp.report import ReportData, build, render, write


def test_writes_what_render_gives(tmp_path: Path) -> None:
    data = ReportData.from_documents(**documents.hostile())
    path = write(data, tmp_path / "report.html")
    assert path.read_bytes().decode("utf-8") == render(data)
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_replaces_an_older_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write(ReportData.from_documents(), str(path))
    assert path.read_text().startswith("<!doctype html>")


def test_a_failure_leaves_the_older_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.os, "fsync", full)
    with pytest.raises(SkimpError, match="No space left"):
        write(ReportData.from_documents(), path)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(SkimpError, match=r"missing.*folder that exists"):
        write(ReportData.from_documents(), tmp_path / "missing" / "report.html")
    with pytest.raises(SkimpError, match="is a folder"):
        write(ReportData.from_documents(), tmp_path)
