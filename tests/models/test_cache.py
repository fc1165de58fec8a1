"""Cached folders: whole or absent, checked, and made anew when damaged."""

import json
import os
import threading
from pathlib import Path

import pytest

from skimp.errors import LoadError
from skimp.models import cache
from skimp.progress import Progress


class Notes(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


class Builder:
    """Writes two files; counts how often."""

    def __init__(self, content: str = "content") -> None:
        self.content, self.calls = content, 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "a.txt").write_text(self.content)
        (folder / "b.txt").write_text("b")


def obtain(folder: Path, build: Builder, notes: Progress | None = None) -> Path:
    return cache.obtain(folder, build, source={"from": "test"}, progress=notes or Progress())


def test_made_once(tmp_path: Path) -> None:
    build = Builder()
    target = tmp_path / "deep" / "entry"
    assert obtain(target, build) == obtain(target, build) == target
    assert build.calls == 1
    assert (target / "a.txt").read_text() == "content"


def test_the_marker_holds_source_and_checksums(tmp_path: Path) -> None:
    target = obtain(tmp_path / "entry", Builder())
    marker = json.loads((target / cache.MARKER).read_text())
    assert marker["source"] == {"from": "test"}
    assert marker["files"]["b.txt"]["size"] == 1
    assert marker["files"]["b.txt"]["sha256"] == cache.digest(target / "b.txt")


def _same_size(target: Path) -> None:
    (target / "a.txt").write_text("CONTENT")


def _shorter(target: Path) -> None:
    path = target / "a.txt"
    times = path.stat()
    path.write_text("cont")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a cut that keeps the time


def _gone(target: Path) -> None:
    (target / "b.txt").unlink()


def _no_marker(target: Path) -> None:
    (target / cache.MARKER).unlink()


def _bad_marker(target: Path) -> None:
    (target / cache.MARKER).write_text("[]")


def _old_format(target: Path) -> None:
    marker = json.loads((target / cache.MARKER).read_text())
    (target / cache.MARKER).write_text(json.dumps(marker | {"format": 0}))


@pytest.mark.parametrize(
    "harm", [_same_size, _shorter, _gone, _no_marker, _bad_marker, _old_format]
)
def test_damage_is_noticed_noted_and_repaired(tmp_path: Path, harm: object) -> None:
    build, notes = Builder(), Notes()
    target = obtain(tmp_path / "entry", build)
    assert callable(harm)
    harm(target)
    assert obtain(target, build, notes) == target
    assert build.calls == 2
    assert len(notes.lines) == 1
    assert "Rebuilding" in notes.lines[0]
    assert (target / "a.txt").read_text() == "content"
    assert cache.damage(target) is None


def test_a_new_time_alone_is_no_damage(tmp_path: Path) -> None:
    build = Builder()
    target = obtain(tmp_path / "entry", build)
    os.utime(target / "a.txt", ns=(1, 1))
    obtain(target, build)
    assert build.calls == 1
    marker = json.loads((target / cache.MARKER).read_text())
    assert marker["files"]["a.txt"]["mtime_ns"] == 1  # remembered: not hashed again


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def build(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise error

    target = tmp_path / "entry"
    with pytest.raises(error):
        cache.obtain(target, build, source={}, progress=Progress())
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert obtain(target, Builder()) == target


def test_an_interrupt_while_repairing_keeps_the_folder_refusable(tmp_path: Path) -> None:
    target = obtain(tmp_path / "entry", Builder())
    _same_size(target)

    def build(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.obtain(target, build, source={}, progress=Progress())
    assert cache.damage(target) is not None


def test_remains_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    stale = tmp_path / ".entry-killed"
    stale.mkdir()
    (stale / "a.txt").write_text("half")
    obtain(tmp_path / "entry", Builder())
    assert not stale.exists()


def test_two_at_once_build_once(tmp_path: Path) -> None:
    inside, go, build = threading.Event(), threading.Event(), Builder()

    def slow(folder: Path) -> None:
        inside.set()
        assert go.wait(30)
        build(folder)

    def run() -> None:
        cache.obtain(tmp_path / "entry", slow, source={}, progress=Progress())

    first, second = threading.Thread(target=run), threading.Thread(target=run)
    first.start()
    assert inside.wait(30)
    second.start()
    go.set()
    first.join(30)
    second.join(30)
    assert build.calls == 1
    assert cache.damage(tmp_path / "entry") is None


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "private").write_text("x")
        (folder / "private").chmod(0o600)

    target = cache.obtain(tmp_path / "entry", build, source={}, progress=Progress())
    plain = tmp_path / "plain"
    plain.touch()
    for name in ("private", cache.MARKER):
        assert (target / name).stat().st_mode == plain.stat().st_mode


def test_a_cache_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LoadError, match="SKIMP_CACHE"):
        obtain(tmp_path / "file" / "entry", Builder())


def test_the_environment_chooses_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.delenv("SKIMP_CACHE", raising=False)
    assert cache.root() == Path("/elsewhere/skimp")
    monkeypatch.setenv("SKIMP_CACHE", str(tmp_path))
    assert cache.root() == tmp_path
    monkeypatch.delenv("SKIMP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.root() == Path("/home/someone/.cache/skimp")
