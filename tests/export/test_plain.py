"""Folders for transformers: planned ones, and those of the dense family with zeros."""

from pathlib import Path

import pytest
import torch
from tests.contract.cases import CASES
from tests.export.kit import logits, product
from tests.families import SAMPLES
from transformers import AutoModelForCausalLM

from skimp.export.registry import TARGETS
from skimp.export.write import Refused, export

PLAIN, PLANNED = TARGETS["transformers-plain"], TARGETS["transformers"]


@pytest.mark.parametrize("family", SAMPLES)
@pytest.mark.parametrize("case", ["drop-zero", "drop-mean", "experts-calibrated"])
def test_dense_class_says_what_the_planned_model_says(
    family: str, case: str, tmp_path: Path
) -> None:
    if family in CASES[case].refused:
        pytest.skip("no such plan")
    with product(family, case, "middle") as made:
        wanted = logits(made.model)
        try:
            written = export(made, PLAIN, "f32", tmp_path / "out")
        except Refused as error:
            assert case == "drop-mean" and "drop.fill: a mean needs the bias" in str(error)
            return
    loaded = AutoModelForCausalLM.from_pretrained(written.path, dtype=torch.float32).eval()
    assert loaded.config.model_type == made.dense.model_type
    assert (logits(loaded) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "llama-tied-biased"])
def test_means_are_held_where_there_are_biases(family: str, tmp_path: Path) -> None:
    with product(family, "drop-mean", "first layer") as made:
        assert not PLAIN.obstacles(made, "f32")
    with product("mistral", "drop-mean") as made:
        found = PLAIN.obstacles(made, "f32")
    assert [each.field for each in found] == ["drop.fill"]
    assert found[0].nearest == {"drop": {"fill": "zero", "repair": "none"}}


def test_linear_fills_are_refused(tmp_path: Path) -> None:
    with (
        product("llama", "drop-linear:4") as made,
        pytest.raises(Refused, match=r"drop\.fill: a linear map"),
    ):
        export(made, PLAIN, "f32", tmp_path / "out")


def test_it_says_that_it_saves_nothing(tmp_path: Path) -> None:
    with product("llama", "drop-zero") as made:
        written = export(made, PLAIN, "f32", tmp_path / "out")
        loaded = AutoModelForCausalLM.from_pretrained(written.path)
        assert sum(each.numel() for each in loaded.parameters()) == made.dense.parameters
    assert "It saves nothing" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["f32", "bf16"])
def test_planned_folders(case: str, form: str, tmp_path: Path) -> None:
    import skimp

    with product("llama", case, tokenizer=True) as made:
        wanted = logits(made.model)
        export(made, PLANNED, form, tmp_path / "out")
        assert {weight.dtype for weight in made.model.parameters()} == {torch.float32}
    loaded = skimp.load(str(tmp_path / "out"), dtype="float32")
    assert loaded.plan is not None and loaded.tokenizer is not None
    if form == "f32":
        assert torch.equal(logits(loaded.model), wanted)
    else:
        assert 0 < (logits(loaded.model) - wanted).abs().max() < 2
