"""A plan is for one model; any other refuses it and names the field."""

import pytest
import torch
from tests.families import Sample, build
from torch import nn

import skimp
from skimp.errors import PlanError
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def test_fingerprint_survives_a_change_of_dtype(sample: Sample, anatomy: Anatomy) -> None:
    half = Anatomy.of(sample.build(dtype=torch.bfloat16))
    assert half.fingerprint == anatomy.fingerprint


def test_fingerprint_tells_seeds_apart(sample: Sample, anatomy: Anatomy) -> None:
    assert Anatomy.of(sample.build(seed=1)).fingerprint != anatomy.fingerprint


def test_fingerprint_sees_a_fine_tune(sample: Sample, anatomy: Anatomy) -> None:
    model = sample.build()
    with torch.no_grad():
        for weight in sample.blocks(model)[-1].parameters():
            weight.copy_(torch.randn_like(weight))
    assert Anatomy.of(model).fingerprint != anatomy.fingerprint


def test_fingerprint_is_the_same_while_a_plan_is_on(model: nn.Module, anatomy: Anatomy) -> None:
    plan = Plan.empty(anatomy).with_section("drop", {"layers": [0]})
    with skimp.apply(model, plan):
        assert Anatomy.of(model).fingerprint == anatomy.fingerprint
        assert Anatomy.of(model).dense_layers == anatomy.dense_layers


@pytest.mark.parametrize(
    ("other", "field"), [("mistral", "type"), ("deeper", "layers"), ("reseeded", "fingerprint")]
)
def test_plan_for_another_model_is_refused(other: str, field: str) -> None:
    model = build("llama")
    plan = Plan.empty(_other(other)).with_section("drop", {"attention": [1]})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PlanError, match=rf"^model\.{field}: .* made for .*`skimp plan`"):
        skimp.apply(model, plan)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _other(name: str) -> Anatomy:
    if name == "mistral":
        return Anatomy.of(build("mistral"))
    if name == "reseeded":
        return Anatomy.of(build("llama", seed=1))
    from transformers import AutoModelForCausalLM

    config = build("llama").config
    config.num_hidden_layers = 5
    return Anatomy.of(AutoModelForCausalLM.from_config(config))


def test_plan_stands_on_every_dtype() -> None:
    plan = Plan.empty(Anatomy.of(build("llama")))
    plan = plan.with_section("drop", {"attention": [1], "fill": "mean"})
    plan = plan.with_values({"drop.attention.1.mean": torch.ones(32)})
    model = build("llama", dtype=torch.bfloat16)
    with skimp.apply(model, plan):
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        model(torch.tensor([[3, 4]]))
