"""Law 1: nothing asked, nothing changed."""

import torch
from tests.contract.cases import Case, missing_methods, plan_for
from tests.contract.runs import make_batch, uncached
from torch import nn

import skimp
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

BATCH = make_batch([9, 4])


def test_every_method_stands_under_the_laws() -> None:
    assert not missing_methods(), "add cases for these to tests/contract/cases.py"


def test_empty_plan_gives_the_dense_logits(model: nn.Module) -> None:
    wanted = uncached(model, BATCH)
    with skimp.apply(model, Plan.empty(Anatomy.of(model))):
        assert torch.equal(uncached(model, BATCH), wanted)
    assert torch.equal(uncached(model, BATCH), wanted)


def test_section_that_asks_for_nothing_changes_nothing(
    model: nn.Module, anatomy: Anatomy, case: Case
) -> None:
    wanted = uncached(model, BATCH)
    config = model.config.to_dict()
    for section in case.neutral:
        with skimp.apply(model, plan_for(case, section, anatomy)):
            assert torch.equal(uncached(model, BATCH), wanted)
            assert model.config.to_dict() == config
            assert Anatomy.of(model) == anatomy
