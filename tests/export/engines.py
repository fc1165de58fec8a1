"""Interpreters of engines, and tiny planned models of the sizes that engines want."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.cases import CASES
from tests.export.kit import of_plan
from tests.families import randomise
from transformers import AutoConfig, AutoModelForCausalLM

from skimp.export.target import Product
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

LAYERS = 6
# The first layer has no attention; one is gone whole, or is two fills.
DROP = {"attention": [0, 3], "ffn": [2, 3], "layers": [4]}
NARROW = {"keep": 0.5, "scope": "calibrated"}
WINDOW = {"mistral": 24, "gemma2": 16, "gemma3_text": 16}


def interpreter(name: str) -> Path:
    """The interpreter that a variable names; the test is skipped where it names none."""
    found = os.environ.get(name)
    if not found:
        pytest.skip(f"{name} names no interpreter")
    return Path(found)


def model(family: str, **values: Any) -> Any:
    """A tiny model with heads as wide as engines' kernels ask for."""
    settings: dict[str, Any] = {
        "vocab_size": 200,
        "hidden_size": 128,
        "intermediate_size": 224,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "tie_word_embeddings": family in ("qwen2", "gemma2", "gemma3_text"),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if family in WINDOW:
        settings["sliding_window"] = WINDOW[family]
    if family.startswith("gemma"):
        settings["query_pre_attn_scalar"] = 32
    config = AutoConfig.for_model(family, **(settings | values))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(made)
    return made.eval()


@contextmanager
def planned(
    family: str, fill: str, *, narrow: bool = False, python: Path | None = None, **values: Any
) -> Iterator[Product]:
    """The family's tiny model with sublayers dropped and, if `narrow`, half of the neurons."""
    dense = model(family, **values)
    anatomy = Anatomy.of(dense)
    sections: dict[str, Any] = {"drop": {**DROP, "fill": fill}}
    if fill.startswith("linear") and family not in ("gemma2", "gemma3_text"):
        sections["drop"]["repair"] = "full"
    if narrow:
        sections["experts"] = NARROW
    plan, made = Plan.empty(anatomy), {}
    for method, section in sections.items():
        plan = plan.with_section(method, section)
        made.update(_values(method, section, anatomy))
    with of_plan(dense, anatomy, plan.with_values(made)) as product:
        yield Product(
            product.model, None, product.plan, anatomy, product.source, product.name, python
        )


def _values(method: str, section: dict[str, Any], anatomy: Anatomy) -> dict[str, Any]:
    cases = [case for case in CASES.values() if case.method == method]
    if method == "experts":
        cases = [case for case in cases if case.one(LAYERS, "").get("scope") == "calibrated"]
    return dict(cases[0].values(section, anatomy, 0))
