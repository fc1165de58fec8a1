"""Folders that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skimp.errors import SkimpError


@contextmanager
def whole_folder(folder: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write into, which becomes `folder` when the block ends.

    If the block raises, an interrupt included, nothing is left of it, and what stood at `folder`
    stays. `replace`: an old folder may stand there, which goes once the new one is whole.

    Raises:
        SkimpError: `folder` exists and is not empty (unless `replace`), is a file, or cannot be
            written.
    """
    folder = Path(folder)
    there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if there and not (replace and folder.is_dir()):
        raise SkimpError(f"{folder}: already exists and is not an empty folder; name another.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            yield fresh
            if folder.exists():
                shutil.move(folder, Path(scratch) / "old")
            shutil.move(fresh, folder)
    except OSError as error:
        raise SkimpError(f"{folder}: cannot be written ({error.strerror or error}).") from None
