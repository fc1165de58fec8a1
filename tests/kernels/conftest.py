from collections.abc import Iterator

import pytest

from skimp.kernels.library import library, why_not
from skimp.kernels.native import ISAS, Native


@pytest.fixture(scope="session")
def native() -> Native:
    """The native library; without one its tests are skipped, and say so."""
    found = library()
    if found is None:
        pytest.skip(f"no native kernels: {why_not()}")
    return found


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, native: Native) -> Iterator[str]:
    """Each instruction set that this processor has, in use for one test."""
    if native.choose(request.param) != request.param:
        native.choose(None)
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native.choose(None)
