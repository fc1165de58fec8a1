"""Ask OpenVINO; see :mod:`skimp.export.ask` for jobs and answers. Runs without skimp."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

openvino: Any = import_module("openvino")  # not this file, which has its name

# Else OpenVINO rounds what it computes, and its cache to 8 bits; asked is about the weights alone.
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def main() -> None:
    """Answer the jobs on standard input, one a line."""
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        Path(job["answer"]).write_text(json.dumps(answer(job)))


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What OpenVINO says."""
    core = openvino.Core()
    model = core.compile_model(f"{job['model']}/openvino_model.xml", "CPU", EXACT)
    request = model.create_infer_request()
    inputs = {name for port in model.inputs for name in port.get_names()}
    tokens, logits = [], []
    for number, prompt in enumerate(job["prompts"]):
        request.reset_state()
        found = read(request, inputs, prompt, 0)
        path = f"{job['scratch']}/{number}.npy"
        np.save(path, found)
        logits.append(path)
        taken = [int(found[-1].argmax())]
        while len(taken) < job["new"]:
            found = read(request, inputs, taken[-1:], len(prompt) + len(taken) - 1)
            taken.append(int(found[-1].argmax()))
        tokens.append(taken)
    return {
        "engine": f"OpenVINO {openvino.get_version().split('-')[0]}",
        "tokens": tokens,
        "logits": logits if job["logits"] else None,
    }


def read(request: Any, inputs: set[str], tokens: list[int], seen: int) -> np.ndarray:
    """Logits [S, vocabulary] after each of these tokens, which come after `seen` others."""
    given = {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": np.ones((1, seen + len(tokens)), np.int64),
        "position_ids": np.arange(seen, seen + len(tokens), dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    request.infer({name: value for name, value in given.items() if name in inputs})
    return np.array(request.get_tensor("logits").data[0], np.float32)


if __name__ == "__main__":
    main()
