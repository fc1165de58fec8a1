"""Two GGUF files in one process, decoding in turns. Runs where llama_cpp is, without skimp.

Reads a job as JSON from standard input: `files`, two paths; `threads`; `context`, tokens of the
prompt; `turns` of `steps` decode steps each. Prints, as its last line, each file's time of every
step of every turn, in s, as JSON [2][turns][steps].
"""

import json
import sys
import time

from bench.engines.base import Options
from bench.engines.llama import Llama


def main() -> None:
    """Warm up with one turn, then take turns, the order reversed from turn to turn."""
    job = json.load(sys.stdin)
    turns, steps, context = job["turns"], job["steps"], job["context"]
    length = context + (turns + 1) * steps + 1
    sides = [Llama(Options("", job["threads"], length, file=file)) for file in job["files"]]
    prompt = [i % 1000 + 5 for i in range(context)]
    tokens = [side.prefill(prompt) for side in sides]
    times: list[list[list[float]]] = [[], []]
    for turn in range(turns + 1):
        for number in (0, 1) if turn % 2 else (1, 0):
            taken = []
            for _ in range(steps):
                start = time.perf_counter()
                tokens[number] = sides[number].decode(tokens[number])
                taken.append(time.perf_counter() - start)
            times[number].append(taken)
    print(json.dumps([each[1:] for each in times]))


if __name__ == "__main__":
    main()
