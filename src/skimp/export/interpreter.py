"""An engine's own Python interpreter; what it runs of this package needs nothing of skimp."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skimp.errors import ExportError

_ERROR = re.compile(r"\b\w*(Error|Exception): ")
# Scripts bear their engines' names, which run as files would hide what they import.
_RUN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
_PRESENT = (
    "import importlib.util, sys; "
    "sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))"
)


@dataclass(frozen=True)
class Ran:
    """How a script ended: exit `status`, and its `last_words`."""

    status: int
    last_words: str


@dataclass(frozen=True)
class Interpreter:
    """`path` of a Python; `environment`: variables that the engine needs beside this process's."""

    path: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, python: Path | None, **environment: str) -> "Interpreter":
        """The one that was named, or this one."""
        path = python.expanduser().absolute() if python else sys.executable
        return cls(str(path), environment)

    def has(self, *modules: str) -> bool:
        """Whether all these modules are installed; those by dotted paths are looked up by root.

        Raises:
            ExportError: it cannot be run.
        """
        # Finding a submodule would import what it lies in.
        roots = [module.partition(".")[0] for module in modules]
        return not self._start("-c", _PRESENT, *roots).status

    def run(self, script: Path, given: str, folder: str | None = None) -> Ran:
        """Run a script with `given` as its standard input, in `folder`.

        Raises:
            ExportError: the interpreter cannot be run; that the script fails is no error here.
        """
        return self._start("-c", _RUN, str(script), given=given, folder=folder)

    def _start(self, *words: str, given: str = "", folder: str | None = None) -> Ran:
        try:
            done = subprocess.run(
                [self.path, *words],
                input=given,
                env={**os.environ, **self.environment},
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise ExportError(
                f"--engine-python: {self.path} cannot be run ({error.strerror or error}); give the "
                "path of a Python interpreter."
            ) from None
        return Ran(done.returncode, _last_words(done.stderr))


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # Bars and farewells may follow the error.
    errors = [line for line in lines if _ERROR.search(line)]
    return (errors or lines or ["it said nothing"])[-1][:300]
