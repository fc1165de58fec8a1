"""llama.cpp says of the file what the planned model says; skipped where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.gguf_kit import drop, llama_python, planned

from skimp.export.ask import Question, ask
from skimp.export.gguf.target import TARGET, write
from skimp.export.target import Product
from skimp.export.verify import verify
from skimp.export.write import export

pytest.importorskip("gguf")

_PROMPT = [5, 6, 7, 8, 90, 3, 44, 5, 6, 21, 60, 2]
_PLANS: dict[str, Any] = {
    "dense": None,
    "attention in the middle": drop(attention=(1, 2)),
    "attention of layer 0": drop(attention=(0,)),
    "all attention but one": drop(attention=(0, 1, 3)),
    "an FF": drop(ffn=(1,)),
    "the last FF": drop(ffn=(3,)),
    "all FFs but one, and layer 0": drop(attention=(0,), ffn=(0, 1, 3)),
    "narrower FFs": {"experts": {"keep": [1.0, 0.5, 0.2, 1.0], "scope": "calibrated"}},
    "means": drop(attention=(0, 2), ffn=(1,), fill="mean"),
    "low ranks": drop(attention=(0, 2), ffn=(1, 3), fill="linear:4"),
    "whole maps": drop(attention=(0, 2), ffn=(1, 3), fill="linear:full"),
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _off(given: Product, folder: Path) -> float:
    """The largest difference of logits, float32 against float32."""
    assert TARGET.check is not None
    path = folder / "m.gguf"
    write(given, "f32", path)
    answer = ask(TARGET.check, Question(path, "f32", [_PROMPT], 4), python=llama_python())
    assert answer.logits is not None
    with torch.no_grad():
        wanted = given.model(torch.tensor([_PROMPT])).logits[0].numpy()
    assert answer.logits[0].values.shape == wanted.shape
    return float(np.abs(answer.logits[0].values - wanted).max())


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("plan", _PLANS)
def test_logits_are_the_planned_models(tmp_path: Path, kind: str, plan: str) -> None:
    with planned(kind, _PLANS[plan]) as given:
        assert _off(given, tmp_path) < 1e-4


@pytest.mark.parametrize("rope", [_LLAMA3, _YARN, _YARN | {"rope_type": "linear"}])
@pytest.mark.parametrize("plan", ["dense", "attention in the middle"])
def test_scaled_positions_are_the_planned_models(
    tmp_path: Path, plan: str, rope: dict[str, Any]
) -> None:
    with planned("llama", _PLANS[plan], rope_parameters=rope) as given:
        assert _off(given, tmp_path) < 1e-4


@pytest.mark.parametrize("settings", [{"attention_bias": True, "mlp_bias": True}, {"head_dim": 24}])
def test_biases_and_heads_of_other_widths(tmp_path: Path, settings: dict[str, Any]) -> None:
    with planned("llama", _PLANS["attention of layer 0"], **settings) as given:
        assert _off(given, tmp_path) < 1e-4


@pytest.mark.parametrize("plan", ["dense", "attention of layer 0", "narrower FFs", "low ranks"])
def test_maps_that_lie_in_one_weight_are_taken_apart(tmp_path: Path, plan: str) -> None:
    with planned("phi3", _PLANS[plan], pad_token_id=0, sliding_window=None) as given:
        assert _off(given, tmp_path) < 1e-4


def test_a_file_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    with planned(sections=_PLANS["means"]) as given:
        write(given, "f32", tmp_path / "m.gguf")
        with torch.no_grad():
            given.model.model.layers[0].mlp.down_proj.weight[0] += 0.1
        question = Question(tmp_path / "m.gguf", "f32", [_PROMPT], 1)
        result = ask(TARGET.check, question, python=llama_python())
        wanted = given.model(torch.tensor([_PROMPT])).logits[0].detach().numpy()
        assert result.logits is not None
        assert np.abs(result.logits[0].values - wanted).max() > 1e-2


@pytest.mark.parametrize("form", ["f32", "f16", "q8_0", "q4_k_m"])
def test_greedy_tokens_are_the_planned_models(tmp_path: Path, form: str) -> None:
    python = llama_python()
    with planned(sections=_PLANS["low ranks"]) as given:
        given = Product(
            given.model, None, given.plan, given.dense, given.source, given.name, python
        )
        found = export(given, TARGET, form, tmp_path / "out")
        result = verify(given, TARGET, found, python=python, prompts=50, new=4)
    if form in ("f32", "f16"):
        assert result.passed, result.sentence
    else:
        # Random weights are the worst there are for few bits; most tokens stay.
        assert result.max_difference is not None
        assert result.max_difference < (1 if form == "q8_0" else 8)
    assert result.differ == 0, result.sentence
