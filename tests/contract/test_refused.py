"""What a method cannot do to a family it refuses, with the reason; the other laws pass over it."""

import pytest
from tests.contract.cases import CASES, Case, plan_for
from tests.contract.test_reversible import Portrait
from tests.families import SAMPLES
from tests.tiny import calibration

import skimp
from skimp.errors import PlanError
from skimp.methods import registry
from skimp.methods.fit import fit_plan
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

PAIRS = [
    pytest.param(case, name, id=f"{label}-{name}")
    for label, case in CASES.items()
    for name in sorted(case.refused)
]


@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_refused_families(case: Case, name: str) -> None:
    model = SAMPLES[name].build()
    anatomy, before = Anatomy.of(model), Portrait.of(model)
    section = case.one(anatomy.dense_layers, "middle")
    bare = Plan.empty(anatomy).with_section(case.method, section)
    for refuse in (
        lambda: skimp.apply(model, plan_for(case, section, anatomy)),
        lambda: registry.reduce(bare, anatomy),
        lambda: fit_plan(model, bare, calibration()),
    ):
        words = rf"^{case.method}(\.\w+)?: the .*; leave .* out of the plan\."
        with pytest.raises(PlanError, match=words):
            refuse()
        before.assert_same(model)
