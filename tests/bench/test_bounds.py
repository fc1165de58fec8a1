"""What the byte-bound bench asks for, and what it makes of the times."""

import pytest
import torch
from tests import families

from bench import bounds
from skimp.engine import Engine
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.workload import Workload

WORK = Workload(16, 8, 1)


@pytest.mark.parametrize("name", bounds.plans(4))
def test_every_plan_fits_a_model_and_reads_fewer_bytes(name: str) -> None:
    model = families.build("llama")
    anatomy = Anatomy.of(model)
    plan = Plan(Plan.empty(anatomy).model, bounds.plans(len(anatomy.layers))[name])
    planned = reduce(plan, anatomy)
    assert bounds.byte_bound(anatomy, planned, WORK) > 1


def test_shares_are_of_the_layers_and_spread_over_them() -> None:
    found = bounds.plans(30)
    assert len(found["33% of attention"]["drop"]["attention"]) == 10
    assert found["25% of FF"]["drop"]["ffn"] == [1, 3, 5, 7, 9, 11, 13]
    layers = found["25% of layers"]["drop"]
    assert layers["attention"] == layers["ffn"] == found["25% of FF"]["drop"]["ffn"]


def test_a_side_times_turns_but_not_the_first() -> None:
    side = bounds._Side(Engine(families.build("llama")), 8, 2)
    assert side.times == []
    with torch.inference_mode():
        side.turn()
        side.turn()
    assert len(side.times) == 2
    assert all(time > 0 for time in side.times)
