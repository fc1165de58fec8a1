"""Triton's kernels, each set of cases in a process of its own: see triton_cases.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.kernels.exact import draw

from skimp import kernels
from skimp.kernels import ops, reference

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; it comes with torch for GPUs, and on Linux with the dev extra",
)


def run_cases(name: str, **environment: str) -> None:
    """Run the tests in a file beside this one as a user would, and show what they said."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name(name))],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 and " passed" in said, said


@needs_triton
def test_in_the_interpreter() -> None:
    run_cases("triton_cases.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
def test_on_a_gpu() -> None:
    run_cases("triton_cases.py")


@needs_triton
def test_compiled_for_a_gpu(tmp_path: Path) -> None:
    backends = importlib.import_module("triton.backends").backends
    if "nvidia" not in backends:
        pytest.skip("this Triton does not compile for NVIDIA's GPUs")
    run_cases("triton_compiles.py", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize("how", ("missing", "turned off"))
def test_without_triton_nothing_breaks(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "missing":
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(sys.modules, "skimp.kernels.triton_rows", raising=False)
        # Once imported, a module is found as its package's attribute.
        monkeypatch.delattr(kernels, "triton_rows", raising=False)
    else:
        monkeypatch.setenv("SKIMP_TRITON", "off")
    ops.triton_rows.cache_clear()
    try:
        assert ops.triton_rows() is None
        x, w = draw(2, 8, dtype=torch.float32), draw(5, 8, dtype=torch.float32)
        rows = torch.tensor([4, 0], dtype=torch.int32)
        got = torch.ops.skimp.linear2.default.redispatch(CUDA, x, w, w, None, None, rows)
        assert torch.equal(got[1], reference.linear(x, w, None, rows))
        got = torch.ops.skimp.neurons.default.redispatch(CUDA, x[:, :2], w, rows)
        assert torch.equal(got, reference.neurons(x[:, :2], w, rows))
    finally:
        ops.triton_rows.cache_clear()
