"""Compile Triton's kernels for a GPU that need not be there: the interpreter knows no types."""

import inspect
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from skimp.kernels import triton_rows

AMPERE = GPUTarget("cuda", 80, 32)
SHORT = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
NUMBERS = {*("m", "r", "k", "n", "height", "stride", "each", "parts", "size")}


def compiled(kernel: Any, pointers: str, constants: dict[str, Any]) -> Any:
    """`kernel` with int32 rows, float32 parts' sums, and all else of the type `pointers`."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return "i32" if name in NUMBERS else {"rows": "*i32", "sums": "*fp32"}.get(name, pointers)

    signature = {name: kind(name) for name in inspect.signature(kernel.fn).parameters}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=AMPERE, options=triton_rows.OPTIONS)


def test_every_kernel_compiles_and_fits() -> None:
    assert not triton_rows.INTERPRETED
    for dtype, inputs in ((torch.bfloat16, 1), (torch.bfloat16, 16), (torch.float32, 16)):
        names = ("ROWS", "COLUMNS", "INPUTS")
        sizes = dict(zip(names, triton_rows.tile(inputs, dtype), strict=True), WIDEN=False)
        biased = dict(B1=True, B2=False, B3=False)
        made = (
            compiled(triton_rows._linear_kernel, SHORT[dtype], sizes | biased),
            compiled(triton_rows._neurons_kernel, SHORT[dtype], sizes),
            compiled(triton_rows._add_parts, SHORT[dtype], dict(BLOCK=1024)),
        )
        for kernel in made:
            assert kernel.asm["cubin"]
            assert kernel.metadata.shared <= 64 * 1024  # what the smallest GPUs have for a program
