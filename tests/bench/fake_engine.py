"""An engine of sleeps instead of models, for tests of what surrounds engines.

`options.argument` is JSON: `log`, a file that takes the begin and end of every call; `step_s`, what
one takes; `fail_at`, the decode step that raises; `die_at`, the one that ends the process; `spin`,
whether a thread keeps a core busy.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from bench.engines.base import Options


def versions() -> dict[str, str]:
    print("libraries print things")  # must not get into the answers
    return {"fake": "1"}


def load(options: Options) -> "Fake":
    return Fake(json.loads(options.argument or "{}"), options)


class Fake:
    def __init__(self, wanted: dict[str, Any], options: Options) -> None:
        self._wanted, self._steps = wanted, 0
        self.about = {"length": str(options.length)}
        if wanted.get("spin"):
            threading.Thread(target=_spin, daemon=True).start()

    def prefill(self, ids: list[int]) -> int:
        self._work("prefill", len(ids))
        return ids[-1] + self._wanted.get("adds", 1)

    def decode(self, token: int) -> int:
        self._steps += 1
        if self._steps == self._wanted.get("fail_at"):
            raise ValueError("no\nmore")
        if self._steps == self._wanted.get("die_at"):
            os.write(2, b"out of something\n")
            os._exit(3)
        self._work("decode", 1)
        return token + self._wanted.get("adds", 1)

    def _work(self, what: str, tokens: int) -> None:
        begin = time.monotonic()
        time.sleep(self._wanted.get("step_s", 0.0))
        if "log" in self._wanted:
            row = {"what": what, "tokens": tokens, "begin": begin, "end": time.monotonic()}
            with Path(self._wanted["log"]).open("a") as file:
                file.write(json.dumps({**row, "name": self._wanted["name"]}) + "\n")


def _spin() -> None:
    while True:
        pass
