"""The grid of the laws: every family times every case, and a budget of generated examples."""

from typing import Any

import pytest
from tests.contract.cases import CASES, Case
from tests.families import SAMPLES, Sample
from torch import nn

from skimp.models.anatomy import Anatomy


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the pairs in which the method must refuse: test_refused.py holds that it does."""
    refused = [item for item in items if _refused(getattr(item, "callspec", None))]
    if refused:
        config.hook.pytest_deselected(items=refused)
        items[:] = [item for item in items if item not in refused]


def _refused(spec: Any) -> bool:
    chosen = {} if spec is None else spec.params
    if not {"sample", "case"} <= chosen.keys() or chosen["case"] not in CASES:
        return False
    return chosen["sample"] in CASES[chosen["case"]].refused


@pytest.fixture(params=list(SAMPLES))
def sample(request: pytest.FixtureRequest) -> Sample:
    return SAMPLES[request.param]


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def model(sample: Sample) -> nn.Module:
    return sample.build()


@pytest.fixture
def anatomy(model: nn.Module) -> Anatomy:
    return Anatomy.of(model)
