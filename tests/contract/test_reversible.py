"""Law 6: taking a plan off restores the model exactly."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from tests.contract.cases import Case, plan_for
from tests.contract.examples import Drawn, drawn, examples
from tests.contract.runs import make_batch, uncached
from tests.families import Sample, build
from torch import Tensor, nn

import skimp
from skimp.errors import PlanError
from skimp.methods import registry
from skimp.models.anatomy import Anatomy
from skimp.models.surgery import Surgery
from skimp.plan import Plan

BATCH = make_batch([6, 3], seed=8)


@dataclass(frozen=True)
class Portrait:
    """Everything that must be as before."""

    modules: dict[str, nn.Module]
    weights: dict[str, Tensor]
    copies: dict[str, Tensor]
    gradients: dict[str, bool]
    config: dict[str, Any]
    attributes: dict[str, dict[str, Any]]
    logits: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> "Portrait":
        weights = dict(model.named_parameters(remove_duplicate=False))
        return cls(
            modules=dict(model.named_modules(remove_duplicate=False)),
            weights=weights,
            copies={name: value.clone() for name, value in model.state_dict().items()},
            gradients={name: weight.requires_grad for name, weight in weights.items()},
            config=model.config.to_dict(),
            attributes={name: dict(_plain(module)) for name, module in model.named_modules()},
            logits=uncached(model, BATCH),
        )

    def assert_same(self, model: nn.Module) -> None:
        now = Portrait.of(model)
        assert list(now.modules) == list(self.modules)
        assert all(now.modules[name] is module for name, module in self.modules.items())
        assert list(now.weights) == list(self.weights)
        assert all(now.weights[name] is weight for name, weight in self.weights.items())
        assert list(now.copies) == list(self.copies)
        assert all(torch.equal(now.copies[name], value) for name, value in self.copies.items())
        assert now.gradients == self.gradients
        assert now.config == self.config
        assert now.attributes == self.attributes
        assert torch.equal(now.logits, self.logits)


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if isinstance(value, (int, float, str, bool, type(None))):
            yield name, value


def test_hard_plans(model: nn.Module, anatomy: Anatomy, case: Case) -> None:
    before = Portrait.of(model)
    for section in case.hard(anatomy.dense_layers).values():
        skimp.apply(model, plan_for(case, section, anatomy)).undo()
        before.assert_same(model)


@examples(30)
@given(example=drawn())
def test_generated_plans(example: Drawn) -> None:
    before = Portrait.of(example.model)
    with skimp.apply(example.model, example.plan) as applied:
        uncached(example.model, BATCH)
        assert applied.plan is example.plan
    applied.undo()  # a second time does nothing
    before.assert_same(example.model)


def test_frozen_weights_stay_frozen(sample: Sample, case: Case) -> None:
    model = sample.build()
    for index, weight in enumerate(model.parameters()):
        weight.requires_grad_(index % 3 == 0)
    anatomy = Anatomy.of(model)
    before = Portrait.of(model)
    for section in case.hard(anatomy.dense_layers).values():
        skimp.apply(model, plan_for(case, section, anatomy)).undo()
    before.assert_same(model)


class Interrupted(Exception):
    """Stands for anything that may go wrong half way."""


def test_failure_half_way_leaves_the_model_as_it_was(
    model: nn.Module, anatomy: Anatomy, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Portrait.of(model)
    plan = plan_for(case, case.one(anatomy.dense_layers, "first layer"), anatomy)
    steps = _count_steps(model, plan, monkeypatch)
    assert steps > 3
    for last in {1, steps // 2, steps}:
        _stop_after(monkeypatch, last)
        with pytest.raises(Interrupted):
            skimp.apply(model, plan)
        monkeypatch.undo()
        before.assert_same(model)


def _count_steps(model: nn.Module, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> int:
    steps: list[str] = []
    real = Surgery.set

    def counted(self: Surgery, owner: Any, name: str, value: Any) -> None:
        steps.append(name)
        real(self, owner, name, value)

    monkeypatch.setattr(Surgery, "set", counted)
    skimp.apply(model, plan).undo()
    monkeypatch.undo()
    return len(steps)


def _stop_after(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    real, done = Surgery.set, []

    def stopping(self: Surgery, owner: Any, name: str, value: Any) -> None:
        real(self, owner, name, value)
        done.append(name)
        if len(done) == last:
            raise Interrupted

    monkeypatch.setattr(Surgery, "set", stopping)


def test_missing_value_leaves_the_model_as_it_was(model: nn.Module, anatomy: Anatomy) -> None:
    before = Portrait.of(model)
    section = {"attention": [0], "ffn": [1], "fill": "linear:2"}
    with pytest.raises(PlanError, match=r"drop\.fill: linear:2 has not been fitted"):
        skimp.apply(model, Plan.empty(anatomy).with_section("drop", section))
    before.assert_same(model)


def test_second_plan_is_refused_until_the_first_is_off(model: nn.Module, anatomy: Anatomy) -> None:
    first, second = (
        Plan.empty(anatomy).with_section("drop", section)
        for section in ({"attention": [0]}, {"ffn": [1]})
    )
    before = Portrait.of(model)
    applied = skimp.apply(model, first)
    inside = Portrait.of(model)
    with pytest.raises(PlanError, match="already carries a plan"):
        skimp.apply(model, second)
    inside.assert_same(model)
    applied.undo()
    skimp.apply(model, second).undo()
    before.assert_same(model)


def test_error_inside_the_block_still_takes_the_plan_off() -> None:
    model = build("llama")
    before = Portrait.of(model)
    anatomy = Anatomy.of(model)
    plan = Plan.empty(anatomy).with_section("drop", {"layers": [0, 2]})
    with pytest.raises(Interrupted), skimp.apply(model, plan):
        raise Interrupted
    before.assert_same(model)


def test_reduce_leaves_the_anatomy_alone(model: nn.Module, anatomy: Anatomy, case: Case) -> None:
    for section in case.hard(anatomy.dense_layers).values():
        registry.reduce(plan_for(case, section, anatomy), anatomy)
    assert anatomy == Anatomy.of(model)
