"""The grid of the laws: every family times every case, and a budget of generated examples."""

import pytest
from tests.contract.cases import CASES, Case
from tests.families import SAMPLES, Sample
from torch import nn

from skimp.models.anatomy import Anatomy


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
