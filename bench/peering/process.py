"""An engine's worker as its caller sees it: a process that answers orders, or is out."""

import json
import os
import select
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 1800.0  # s: compiling or converting a large model on a busy machine takes minutes
_GRACE = 5.0  # s to leave by itself once its pipe is closed


class Out(Exception):
    """An engine takes no part (any more); the message is one line that says why."""


class Absent(Out):
    """An engine is not installed, or not in a version that fits; the message says what lacks."""


class Peer:
    """One worker process. `log` is the file that its libraries' messages go to."""

    def __init__(self, name: str, module: str, python: str, threads: int, log: Path) -> None:
        """Start the process; Absent if there is no such interpreter."""
        self.name = name
        self._log = log
        command = [python, "-m", "bench.engines.worker", module]
        try:
            with log.open("wb") as file:
                self._process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment(threads),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                )
        except OSError as error:
            raise Absent(f"{python} cannot be run ({error.strerror})") from None

    def ask(self, order: str, *, patience: float = _PATIENCE, **fields: Any) -> dict[str, Any]:
        """Give an order and wait for its answer.

        Raises:
            Absent: a package that the engine needs is not installed.
            Out: the order failed, the process ended, or no answer came for `patience` seconds.
        """
        sent = json.dumps({"order": order, **fields}) + "\n"
        try:
            self._pipe.write(sent.encode())
            self._pipe.flush()
        except OSError:
            raise Out(self._died()) from None
        answer = self._receive(order, patience)
        if "absent" in answer:
            raise Absent(answer["absent"])
        if "error" in answer:
            raise Out(answer["error"])
        return answer

    def close(self) -> None:
        """End the process: politely, then not."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # an order that it did not live to read
                    pipe.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _pipe(self) -> Any:
        return self._process.stdin

    def _receive(self, order: str, patience: float) -> dict[str, Any]:
        stream: Any = self._process.stdout
        ready, _, _ = select.select([stream], [], [], patience)
        if not ready:
            self._process.kill()  # a late answer would be taken for that to the next order
            raise Out(f"no answer to {order!r} within {patience:.0f} s")
        line = stream.readline()
        if not line:
            raise Out(self._died())
        return json.loads(line)

    def _died(self) -> str:
        """Why the process ended, as far as its log's last line tells."""
        self._process.wait(_GRACE)
        said = self._log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
        return f"its process ended with status {self._process.returncode}: {last}"


def environment(threads: int) -> dict[str, str]:
    """The environment of a worker: as many threads as asked for, and no spinning for long.

    Threads of GNU's OpenMP fall asleep within a millisecond or so by themselves; Intel's and LLVM's
    would spin for 200 ms, into the next engine's turn.
    """
    count = str(threads)
    return {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "KMP_BLOCKTIME": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Otherwise a pool of compiling processes stays alive beside the timed ones.
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
