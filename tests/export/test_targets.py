"""Laws of every target: a model is written, or refused with the field that stands in the way."""

from pathlib import Path

import pytest
import torch
from tests.contract.cases import CASES
from tests.export.kit import dense, logits, of_plan, product
from tests.families import SAMPLES, listed

import skimp
from skimp.errors import ExportError
from skimp.export.dense import dense_anatomy
from skimp.export.registry import TARGETS
from skimp.export.target import Product
from skimp.export.write import Refused, export
from skimp.plan import Plan


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("family", [*listed(), "granite", "stablelm"])
def test_written_or_refused_by_field(family: str, name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    model, _ = dense(family)
    before = logits(model)
    for case in CASES.values():
        if family in case.refused:
            continue
        key = next(key for key, each in CASES.items() if each is case)
        with product(family, key, tokenizer=True) as made:
            out = tmp_path / key
            try:
                written = export(made, target, target.formats[0], out)
            except Refused as error:
                assert error.obstacles and not out.exists()
                for each in error.obstacles:
                    assert each.field and each.reason and each.remedy
                    assert f"{each.field}: {each.reason}; {each.remedy}." in str(error)
            else:
                assert written.path.exists() and written.bytes > 0
                assert "MODEL" in target.loading(made, written.form)
    assert torch.equal(logits(model), before), "the model was changed"


@pytest.mark.parametrize("name", TARGETS)
def test_empty_plan_is_the_dense_model(name: str, tmp_path: Path) -> None:
    model, anatomy = dense("llama")
    with of_plan(model, anatomy, Plan.empty(anatomy), tokenizer=True) as made:
        try:
            written = export(made, TARGETS[name], TARGETS[name].formats[0], tmp_path / "out")
        except ExportError as error:  # an engine may need wider heads than a tiny model has
            assert isinstance(error, Refused)
        else:
            assert written.path.exists()


def test_a_planned_folder_is_exported_with_its_plan(tmp_path: Path) -> None:
    """As if the plan had just been applied: classes and config are those of the family."""
    with product("llama", "drop-mean", tokenizer=True) as made:
        wanted, anatomy = logits(made.model), made.dense
        skimp.save(made.model, made.tokenizer, made.plan, tmp_path / "planned")
        again = skimp.load(str(tmp_path / "planned"), dtype="float32")
    assert again.plan is not None
    found = dense_anatomy(again.model)
    assert found == anatomy
    made = Product(again.model, again.tokenizer, again.plan, found, "planned", "again")
    for name in ("transformers", "transformers-plain", "decilm"):
        export(made, TARGETS[name], "f32", tmp_path / name)
    from transformers import AutoModelForCausalLM

    for name in ("transformers-plain",):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        assert (logits(loaded.eval()) - wanted).abs().max() < 1e-4
    loaded = skimp.load(str(tmp_path / "transformers"), dtype="float32")
    assert torch.equal(logits(loaded.model), wanted)


def test_samples_cover_what_targets_name() -> None:
    from skimp.export.shaped import MODEL_TYPES

    assert set(MODEL_TYPES) <= SAMPLES.keys()
