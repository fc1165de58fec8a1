"""The native library's file: shipped beside the source, or compiled at first use and kept.

Nothing but a C compiler is needed; Python's and torch's headers are not. What was compiled lies in
the cache folder under a hash of source, flags and compiler, so that a changed one never meets an
old library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from skimp.errors import LoadError
from skimp.models.cache import obtain, root
from skimp.progress import SILENT

FOLDER = Path(__file__).parent
NAME = "kernels.so"
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
_SHARED = ("-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
_SECONDS = 300


class BuildError(Exception):
    """There is no native library here; the message says why, in one clause."""


def library_file() -> Path:
    """Return the library's path, compiling it if need be (about ten seconds, once).

    Raises:
        BuildError: no compiler, a failed build or an unusable cache folder.
    """
    shipped = FOLDER / NAME
    if shipped.is_file():
        return shipped
    compiler = _compiler()
    folder = root() / "kernels" / _key(compiler)
    try:
        obtain(
            folder,
            lambda place: _compile(compiler, place / NAME),
            source={"compiler": compiler},
            progress=SILENT,
        )
    except LoadError as error:
        raise BuildError(str(error).removesuffix(".")) from error
    return folder / NAME


def _compiler() -> list[str]:
    """The command of the C compiler: ``$CC``, else the first of cc, gcc and clang that is there."""
    chosen = shlex.split(os.environ.get("CC", ""))
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise BuildError(f"the C compiler CC={chosen[0]} was not found")
        return chosen
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C compiler was found (cc, gcc or clang)")


def _key(compiler: list[str]) -> str:
    """A hash of everything that the compiled library depends on."""
    facts = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")]):
        facts.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    version = _run([*compiler, "--version"]).stdout
    for fact in (*compiler, *_FLAGS, *_SHARED, platform.machine(), version):
        facts.update(fact.encode() + b"\0")
    return facts.hexdigest()[:20]


def _compile(compiler: list[str], target: Path) -> None:
    command = [*compiler, *_FLAGS, *_SHARED, str(FOLDER / "kernels.c"), "-o", str(target), "-lm"]
    result = _run(command)
    if result.returncode != 0:
        said = next((line for line in result.stderr.splitlines() if "error" in line.lower()), "")
        raise BuildError(f"{shlex.join(compiler)} could not compile the kernels ({said.strip()})")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} could not be run ({error})") from error
