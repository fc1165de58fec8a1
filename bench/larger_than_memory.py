"""Plan a model that is larger than the memory it may have, and show what memory that took.

Random weights at a true shape are written to a folder shard by shard; then `skimp plan` runs on it
as a process of its own, which may allocate no more than the limit (RLIMIT_DATA; pages of mapped
files do not count), and is watched while it runs. Linux only.

    .venv/bin/python bench/larger_than_memory.py [--shape llama-2-13b] [--layers N] [--limit GB]
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from skimp.measure.machine import identity
from skimp.models import checks, random_weights, shapes
from skimp.progress import RichProgress

RULE = ["--rule", "cosine", "--fill", "linear:16", "--repair", "none", "--dtype", "bf16"]
PLAN = "from skimp.cli.main import app; app()"
EVERY = 0.05  # seconds between two looks at the process


def write_model(shape: str, layers: int | None, folder: Path) -> int:
    """Write the shape with random weights and a tokenizer of bytes; returns bytes of weights."""
    source = f"random:{shape}" + (f",layers={layers}" if layers else "")
    wanted = shapes.parse(source, seed=0)
    config = shapes.config(wanted.shape, layers=wanted.layers)
    random_weights.write(config, folder, dtype=torch.bfloat16, progress=RichProgress())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return checks.count_weights(folder) * 2


def plan(folder: Path, work: Path, tokens: int, drop: int, limit: float | None) -> dict[str, Any]:
    """Run `skimp plan`, its allocations limited to `limit` bytes; returns what was seen of it."""
    text, out = work / "text.txt", work / "plan.json"
    text.write_text("".join(random.Random(0).choices("abcdefghij klmnopqrst uvwxyz.", k=tokens)))
    words = ["plan", str(folder), "--stream", "--drop-attention", str(drop), *RULE]
    words += ["--calibration", str(text), "--out", str(work / "plan.yaml"), "--json", str(out)]

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))

    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", PLAN, *words], preexec_fn=restrict)
    peaks = watch(psutil.Process(process.pid))
    if process.wait() != 0:
        raise SystemExit(f"skimp plan ended with {process.returncode}")
    return {
        **peaks,
        "seconds": time.perf_counter() - start,
        "dropped": json.loads(out.read_text())["dropped"],
        "command": " ".join(["skimp plan MODEL", *words[2:5], *RULE, "--calibration TEXT"]),
    }


def watch(process: psutil.Process) -> dict[str, int]:
    """Peak bytes of a process until it ends: its own (anonymous), and with pages of files."""
    own = total = read = 0
    while True:
        try:
            seen = process.memory_info()
            read = process.io_counters().read_bytes
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            break
        if not seen.rss:  # over, but not yet waited for
            break
        own, total = max(own, seen.rss - seen.shared), max(total, seen.rss)
        time.sleep(EVERY)
    return {"peak_own_bytes": own, "peak_with_file_pages_bytes": total, "read_bytes": read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-2-13b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--limit", type=float, help="GB that `skimp plan` may allocate")
    parser.add_argument("--tokens", type=int, default=512, help="of calibration text")
    parser.add_argument("--drop", type=int, default=10, help="attention sublayers to leave out")
    parser.add_argument("--folder", type=Path, help="where to put the model while it is needed")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name) / "model"
        weights = write_model(given.shape, given.layers, folder)
        limit = None if given.limit is None else given.limit * 1e9
        found = plan(folder, Path(name), given.tokens, given.drop, limit)
    result = {
        "model": {"shape": given.shape, "layers": given.layers, "weight_bytes": weights},
        "tokens": given.tokens,
        "limit_bytes": limit,
        "machine": identity(),
        **found,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
