"""Folders that are made once, kept on disk, and never left half-written or trusted blindly."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skimp.errors import LoadError
from skimp.progress import Progress

FORMAT = 1
"""Goes up when what is written changes; folders of another format are made anew."""

MARKER = "skimp-cache.json"


def root() -> Path:
    """Return the cache folder: ``$SKIMP_CACHE``, else ``$XDG_CACHE_HOME/skimp``, ~/.cache/skimp."""
    chosen = os.environ.get("SKIMP_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "skimp"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def obtain(
    folder: Path, build: Callable[[Path], None], *, source: Mapping[str, Any], progress: Progress
) -> Path:
    """Return `folder`, made by `build(empty folder)` unless a sound one is there.

    The folder appears by one rename, so an interrupt leaves nothing behind that could be mistaken
    for it. Processes that ask for the same folder at once wait for the first. Sizes are checked on
    every call, contents wherever a file's time of change is not the recorded one; a damaged folder
    is made anew, with a note.

    Args:
        folder: final place.
        build: writes the files (a flat folder).
        source: what the files were made from; kept in the marker for the reader.
        progress: told of damage and of waiting.

    Raises:
        LoadError: the cache cannot be read or written.
    """
    from filelock import FileLock

    try:
        if damage(folder) is None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            found = damage(folder)  # another process may have made it meanwhile
            if found is not None:
                if folder.exists():
                    progress.note(f"Rebuilding {folder}: {found}.")
                _replace(folder, build, source)
    except OSError as error:
        raise LoadError(
            f"the cache folder {folder.parent} cannot be used ({error.strerror or error}); "
            "set SKIMP_CACHE to a folder with free space."
        ) from error
    return folder


def damage(folder: Path) -> str | None:
    """Return what is wrong with a cached folder, or None if its files are those written."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        files = marker["files"]
        if marker["format"] != FORMAT:
            return "another version of skimp wrote it"
        touched = [name for name, facts in files.items() if _changed(folder / name, facts)]
        for name in touched:
            if digest(folder / name) != files[name]["sha256"]:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} is damaged"
    except _WrongSize as error:
        return f"{error} has the wrong size"
    if touched:  # sound, only its times are new: remember them, so that the next load is quick
        _refresh(folder, marker)
    return None


class _WrongSize(Exception):
    pass


def _changed(path: Path, facts: Mapping[str, Any]) -> bool:
    stat = path.stat()
    if stat.st_size != facts["size"]:
        raise _WrongSize(path.name)
    return stat.st_mtime_ns != facts["mtime_ns"]


def _replace(folder: Path, build: Callable[[Path], None], source: Mapping[str, Any]) -> None:
    prefix = f".{folder.name}-"
    for stale in folder.parent.glob(f"{prefix}*"):  # of a killed process: the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        build(fresh)
        mode = fresh.stat().st_mode & 0o666  # what the umask lets others do
        for path in fresh.iterdir():
            path.chmod(mode)  # safetensors writes files that only their owner may read
        facts = {path.name: _facts(path) for path in sorted(fresh.iterdir())}
        write_json(fresh / MARKER, {"format": FORMAT, "source": dict(source), "files": facts})
        if folder.exists():
            folder.rename(scratch / "old")
        fresh.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _facts(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest(path)}


def _refresh(folder: Path, marker: dict[str, Any]) -> None:
    for name, facts in marker["files"].items():
        facts["mtime_ns"] = (folder / name).stat().st_mtime_ns
    try:
        write_json(folder / MARKER, marker)
    except OSError:
        return  # a cache that may only be read still serves


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step: readers see the old content or the new, never a part."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    scratch.replace(path)
