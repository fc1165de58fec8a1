"""The process that holds one engine: reads orders from a pipe, one JSON object a line, and answers.

Between two orders it sleeps in `read`. Each answer to `turn` says how much CPU time the process
used since its previous turn, so that an engine whose threads spin while others are timed is found
out. Standard library only: it runs in interpreters that have nothing but the engine.

Orders: `import` (versions), `load`, `agree` (tokens after a prompt), `turn` (timed).
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TextIO

from bench.engines.base import Engine, Options

Message = dict[str, Any]


class Worker:
    """What happens on each order; the engine's state and the times of the last turn."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._home: Any = None
        self._engine: Engine | None = None
        self._token = 0
        self._rest: tuple[float, float] | None = None

    def answer(self, message: Message) -> Message:
        orders: dict[str, Callable[[Message], Message]] = {
            "import": self._import,
            "load": self._load,
            "agree": self._agree,
            "turn": self._turn,
        }
        return orders[message["order"]](message)

    def _import(self, message: Message) -> Message:
        del message
        self._home = importlib.import_module(self._module)
        return {"versions": {"python": sys.version.split()[0], **self._home.versions()}}

    def _load(self, message: Message) -> Message:
        self._engine = self._home.load(Options(**message["options"]))
        return {"about": getattr(self._engine, "about", {})}

    def _agree(self, message: Message) -> Message:
        """The likeliest token at `count` places behind a prompt.

        With `forced` tokens given, each place sees the prompt and those before it, so one near tie
        decided otherwise does not spoil the places behind it.
        """
        engine, forced = self._ready(), message["forced"]
        chosen = [engine.prefill(message["prompt"])]
        for place in range(message["count"] - 1):
            chosen.append(engine.decode(forced[place] if forced else chosen[-1]))
        return {"chosen": chosen}

    def _turn(self, message: Message) -> Message:
        """Timed: the prefill of `prompt` if given, then `steps` decode steps.

        `behind`, if given, is read untimed in the prompt's place before the steps, so that they
        stand at later contexts of the workload.
        """
        engine, answer = self._ready(), self._idle()
        if message["prompt"] is not None:
            start = time.perf_counter()
            self._token = engine.prefill(message["prompt"])
            answer["prefill_s"] = time.perf_counter() - start
        if message["behind"] is not None:
            self._token = engine.prefill(message["behind"])
        marks = [time.perf_counter()]
        for _ in range(message["steps"]):
            self._token = engine.decode(self._token)
            marks.append(time.perf_counter())
        answer["steps_s"] = [end - begin for begin, end in pairwise(marks)]
        gc.collect()  # now, because it is off while a turn runs
        answer["cpu_s"] = time.process_time()
        self._rest = (time.perf_counter(), answer["cpu_s"])
        return answer

    def _idle(self) -> Message:
        """Seconds since the last turn, and those of CPU time that the process used meanwhile."""
        if self._rest is None:
            return {"idle_s": 0.0, "idle_cpu_s": 0.0}
        wall, cpu = self._rest
        return {
            "idle_s": time.perf_counter() - wall,
            "idle_cpu_s": time.process_time() - cpu,
        }

    def _ready(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the engine was not loaded")
        return self._engine


def serve(worker: Worker, orders: TextIO, answers: TextIO) -> None:
    """Answer every order until the pipe is closed. What goes wrong is an answer too."""
    gc.disable()
    for line in orders:
        try:
            answer = worker.answer(json.loads(line))
        except ModuleNotFoundError as error:
            answer = {"absent": f"{error.name or error} is not installed"}
        except ImportError as error:  # there, but of another version, or half installed
            answer = {"absent": _line(error)}
        except Exception as error:
            answer = {"error": _line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text}"


def main() -> None:
    """Keep the pipe for answers alone: whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(Worker(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
