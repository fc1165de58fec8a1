"""Tiny planned models, written as GGUF and read back, or asked of llama.cpp."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.cases import CASES
from tests.families import SAMPLES, VOCABULARY
from transformers import AutoConfig

import skimp
from skimp.export.gguf.target import write
from skimp.export.target import Product
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

LAYERS = 4
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def model(kind: str = "llama", **settings: Any) -> Any:
    """A tiny model whose rows divide into quantized blocks; every bias and norm is random."""
    config = AutoConfig.for_model(kind, **{**_SIZES, **settings})
    return replace(SAMPLES["llama"], config=lambda: config).build()


def product(
    dense: Any, tokenizer: Any = None, name: str = "tiny", python: Path | None = None
) -> Product:
    """What is exported of a dense model."""
    anatomy = Anatomy.of(dense)
    return Product(dense, tokenizer, Plan.empty(anatomy), anatomy, "tiny", name, python)


@contextmanager
def planned(kind: str = "llama", sections: Any = None, **settings: Any) -> Iterator[Product]:
    """A tiny model with a plan of these sections applied, any fitted values drawn."""
    dense = model(kind, **settings)
    anatomy = Anatomy.of(dense)
    plan = Plan.empty(anatomy)
    for name, section in (sections or {}).items():
        plan = plan.with_section(name, section)
        case = next(case for case in CASES.values() if case.method == name)
        plan = plan.with_values(case.values(section, anatomy, 0))
    with skimp.apply(dense, plan):
        yield Product(dense, None, plan, anatomy, "tiny", "tiny")


def drop(attention: tuple[int, ...] = (), ffn: tuple[int, ...] = (), fill: str = "zero") -> Any:
    """The sections of a plan that drops sublayers."""
    return {"drop": {"attention": list(attention), "ffn": list(ffn), "fill": fill}}


def written(given: Product, path: Path, form: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write and read back: metadata values, and tensors as arrays of float32."""
    import gguf

    write(given, form, path / "m.gguf")
    reader = gguf.GGUFReader(path / "m.gguf")
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    return metadata, {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def llama_python() -> Path | None:
    """An interpreter that has llama_cpp: $SKIMP_LLAMA_CPP_PYTHON, or None for this one.

    Skips the test where neither has it.
    """
    named = os.environ.get("SKIMP_LLAMA_CPP_PYTHON")
    if named:
        return Path(named)
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("no llama.cpp: SKIMP_LLAMA_CPP_PYTHON names no Python that has llama_cpp")
    return None
