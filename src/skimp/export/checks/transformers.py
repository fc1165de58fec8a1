"""Ask transformers; see :mod:`skimp.export.ask` for jobs and answers. Runs without skimp."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def main() -> None:
    """Answer the jobs on standard input, one a line."""
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        Path(job["answer"]).write_text(json.dumps(answer(job)))


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What transformers says."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=DTYPES[job["form"]],
        trust_remote_code=True,
        local_files_only=True,
        use_safetensors=True,
    ).eval()
    tokens, logits = [], []
    with torch.no_grad():
        for number, prompt in enumerate(job["prompts"]):
            found = model(input_ids=torch.tensor([prompt]), use_cache=True)
            path = f"{job['scratch']}/{number}.npy"
            np.save(path, found.logits[0].float().numpy())
            logits.append(path)
            tokens.append(greedy(model, found, job["new"]))
    return {
        "engine": f"transformers {transformers.__version__}",
        "tokens": tokens,
        "logits": logits if job["logits"] else None,
    }


def greedy(model: Any, found: Any, new: int) -> list[int]:
    """The likeliest tokens behind a prompt whose output is `found`."""
    taken = [int(found.logits[0, -1].argmax())]
    while len(taken) < new:
        found = model(
            input_ids=torch.tensor([taken[-1:]]),
            past_key_values=found.past_key_values,
            use_cache=True,
        )
        taken.append(int(found.logits[0, -1].argmax()))
    return taken


if __name__ == "__main__":
    main()
