"""What fits where: the memory that is free, and the largest thing that fits into it."""

from pathlib import Path

import psutil
import pytest
import torch

from skimp.errors import LoadError
from skimp.models import placement


def test_available_memory_is_within_the_machine() -> None:
    assert 0 < placement.available_bytes(torch.device("cpu")) <= psutil.virtual_memory().total


def test_a_container_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(placement, "_CGROUP", tmp_path)
    assert placement.available_bytes(torch.device("cpu")) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert placement.available_bytes(torch.device("cpu")) > 600_000
    (tmp_path / "memory.max").write_text("1000000\n")
    with pytest.raises(LoadError, match="are available"):
        placement.require_memory("it", 700_000, torch.device("cpu"), "free some memory")


@pytest.mark.parametrize("limit", [0, 1, 7, 10, 99])
def test_the_largest_that_fits(limit: int) -> None:
    assert placement.largest(10, lambda size: size <= limit) == min(limit, 10)
