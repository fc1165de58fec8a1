"""Formats that llama.cpp's own quantizer makes, run by an interpreter that has llama-cpp-python."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from skimp.errors import ExportError
from skimp.export.target import Obstacle, Product

FORMATS = ("q4_k_m", "q4_k_s", "q5_k_m", "q5_k_s", "q6_k")

_SCRIPT = Path(__file__).with_name("llama_quantize.py")
_PRESENT = "import importlib.util, sys; sys.exit(importlib.util.find_spec('llama_cpp') is None)"


def obstacles(product: Product, form: str) -> list[Obstacle]:
    """What keeps the quantizer from running."""
    python = str(product.python or sys.executable)
    try:
        missing = subprocess.run([python, "-c", _PRESENT], capture_output=True, check=False)
    except OSError:
        missing = None
    if missing is not None and missing.returncode == 0:
        return []
    remedy = "name one by --engine-python (`pip install llama-cpp-python` there), or take q8_0"
    reason = f"{form} is made by llama.cpp, which {python} cannot import"
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
    words = [str(product.python or sys.executable), str(_SCRIPT)]
    done = subprocess.run(
        words, input=json.dumps(job), capture_output=True, text=True, check=False, errors="replace"
    )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise ExportError(
            f"--format: llama.cpp could not make {form} ({' '.join(last)[:300]}); take q8_0."
        )
