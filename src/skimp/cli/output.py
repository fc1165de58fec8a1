"""What the command line writes: tables, JSON documents, files that appear whole or not at all."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from skimp.errors import SkimpError

# Where there is no terminal to fit, rich would fold tables at 80 columns; files and pipes need not.
_WIDTH_WITHOUT_TERMINAL = 140
STDOUT = Path("-")


def console(*, stderr: bool = False) -> Console:
    """A console on standard output, wide enough for tables when that is no terminal."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _WIDTH_WITHOUT_TERMINAL
    return made


def table(title: str | None, *columns: str) -> Table:
    """An empty table; a column whose name starts with `>` holds numbers and is set to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    made.min_width = len(title or "")  # rich would fold the title to the columns' width
    for name in columns:
        right = name.startswith(">")
        made.add_column(
            name.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    return made


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinities become null, tensors and arrays lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    for convert in ("tolist", "item"):  # numpy and torch
        if hasattr(value, convert):
            return plain(getattr(value, convert)())
    return str(value)


def dump(document: Mapping[str, Any]) -> str:
    """The document as JSON text, two spaces an indent, every line ending in a newline."""
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str, option: str) -> None:
    """Write `path` in one step; SkimpError, naming the option, where that fails."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise SkimpError(f"{option}: {path} cannot be written ({_reason(error)}).") from None


def check_file(path: Path | None, option: str) -> None:
    """Raise SkimpError unless a file can be written at `path`; an old one may stand there."""
    if path is None or path == STDOUT:
        return
    if path.is_dir():
        raise SkimpError(f"{option}: {path} is a folder; name a file.")
    _check_parent(path, option)


def check_folder(path: Path, option: str) -> None:
    """Make the folder `path` if need be, and raise SkimpError unless files can be written in it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        _try_write(path)
    except FileExistsError:
        raise SkimpError(f"{option}: {path} is a file; name a folder.") from None
    except OSError as error:
        raise SkimpError(f"{option}: {path} cannot be written ({_reason(error)}).") from None


def _check_parent(path: Path, option: str) -> None:
    if not path.parent.is_dir():
        raise SkimpError(f"{option}: the folder {path.parent} does not exist; make it first.")
    try:
        _try_write(path.parent)
    except OSError as error:
        raise SkimpError(f"{option}: {path} cannot be written ({_reason(error)}).") from None


def _try_write(folder: Path) -> None:
    """Trying is the only test that also holds on read-only mounts and full disks."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
