"""Formats that llama.cpp's own quantizer makes, run by an interpreter that has llama-cpp-python."""

import json
from pathlib import Path

import torch

from skimp.errors import ExportError
from skimp.export.interpreter import Interpreter
from skimp.export.target import Obstacle, Product

FORMATS = ("q4_k_m", "q4_k_s", "q5_k_m", "q5_k_s", "q6_k")

_SCRIPT = Path(__file__).with_name("llama_quantize.py")


def obstacles(product: Product, form: str) -> list[Obstacle]:
    """What keeps the quantizer from running."""
    interpreter = Interpreter.of(product.python)
    try:
        if interpreter.has("llama_cpp"):
            return []
        reason = f"{form} is made by llama.cpp, which {interpreter.path} cannot import"
    except ExportError:
        reason = f"{form} is made by llama.cpp, and {interpreter.path} cannot be run"
    remedy = "name one by --engine-python (`pip install llama-cpp-python` there), or take q8_0"
    return [Obstacle("--format", reason, remedy)]


def source_format(product: Product) -> str:
    """The smallest format that holds the model's weights bit for bit, to be quantized from."""
    for form, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        if all(torch.equal(w.to(dtype).to(w.dtype), w) for w in product.model.parameters()):
            return form
    return "f32"


def quantize(product: Product, whole: Path, path: Path, form: str) -> None:
    """Quantize the file `whole` to `path`.

    Raises:
        ExportError: llama.cpp fails; its last words are quoted.
    """
    job = {"from": str(whole), "to": str(path), "form": form, "threads": torch.get_num_threads()}
    done = Interpreter.of(product.python).run(_SCRIPT, json.dumps(job))
    if done.status:
        raise ExportError(
            f"--format: llama.cpp could not make {form} ({done.last_words}); take q8_0."
        )
