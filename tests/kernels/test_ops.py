"""The operators: traced, compiled, checked by torch, and the same as what is called plainly."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.kernels.exact import DTYPES, draw
from torch import Tensor
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from skimp import kernels
from skimp.kernels import reference
from skimp.kernels.native import Native

OPS = torch.ops.skimp
BF16 = torch.bfloat16
ROWS = torch.tensor([2, 0, 2], dtype=torch.int32)


def attention(dtype: torch.dtype, entries: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q = draw(2, 4, 1, 16, dtype=dtype)
    k, v = (draw(2, 2, entries, 16, dtype=dtype, seed=s) for s in (1, 2))
    return q, k, v, torch.ones(2, 1, entries, dtype=torch.bool)


def cases(dtype: torch.dtype) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every operator with arguments of this dtype."""
    x, bias, norm = draw(2, 1, 24, dtype=dtype), draw(6, dtype=dtype), draw(24, dtype=dtype)
    w = [draw(6, 24, dtype=dtype, seed=s) for s in (1, 2, 3)]
    cache, new = draw(2, 3, 8, 4, dtype=dtype), draw(2, 3, 2, 4, dtype=dtype, seed=5)
    return {
        "linear": (OPS.linear.default, (x, w[0], bias)),
        "linear rows": (OPS.linear.default, (x, w[0], bias, ROWS)),
        "linear2": (OPS.linear2.default, (x, w[0], w[1], None, bias)),
        "linear3": (OPS.linear3.default, (x, *w, bias, None, bias, ROWS)),
        "neurons": (OPS.neurons.default, (draw(2, 6, dtype=dtype), w[0])),
        "neurons rows": (OPS.neurons.default, (draw(2, 3, dtype=dtype), w[0], ROWS)),
        "attend": (OPS.attend.default, (*attention(dtype), 0.25)),
        "attend all": (OPS.attend.default, (*attention(dtype), 0.25, 9.0, torch.zeros(4))),
        "store": (OPS.store.default, (cache, new, torch.tensor([7, 1]))),
        "rms_norm": (OPS.rms_norm.default, (x, norm, 1e-6)),
        "rms_norm all": (OPS.rms_norm.default, (x, norm, 1e-6, 1.0, False)),
    }


@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64), ids=str)
@pytest.mark.parametrize("name", cases(BF16))
def test_torch_finds_nothing_wrong(name: str, dtype: torch.dtype) -> None:
    operator, arguments = cases(dtype)[name]
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", cases(BF16))
def test_the_operator_gives_what_the_function_gives(name: str, dtype: torch.dtype) -> None:
    operator, arguments = cases(dtype)[name]
    _, again = cases(dtype)[name]
    plain: dict[str, Callable[..., Any]] = {
        "linear": kernels.linear,
        "linear2": lambda x, v, w, *b: kernels.linear_many(x, [v, w], b),
        "linear3": lambda x, u, v, w, *b: kernels.linear_many(x, [u, v, w], b[:3], b[3]),
        "neurons": kernels.neurons,
        "attend": kernels.attend,
        "store": kernels.store,
        "rms_norm": kernels.rms_norm,
    }
    with torch.inference_mode():
        got, wanted = operator(*arguments), plain[name.split()[0]](*again)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    torch.testing.assert_close(arguments, again, rtol=0, atol=0)  # store writes into its own


def test_the_fakes_know_shapes_and_strides() -> None:
    for operator, arguments in cases(BF16).values():
        moved = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
        got, wanted = flat(operator(*moved)), flat(operator(*arguments))
        for one, other in zip(got, wanted, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert one.stride() == other.stride()


@pytest.mark.parametrize("name", cases(BF16))
def test_other_devices_take_the_reference(name: str) -> None:
    """What is registered for a device other than the CPU, called with tensors that are here."""
    operator, arguments = cases(torch.float32)[name]
    _, again = cases(torch.float32)[name]
    elsewhere = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    got, wanted = operator.redispatch(elsewhere, *arguments), operator(*again)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(arguments, again, rtol=0, atol=0)


def flat(result: Any) -> tuple[Tensor, ...]:
    if result is None:
        return ()
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_and_reference_agree(native: Native, dtype: torch.dtype) -> None:
    """Within one rounding of the result, where nothing cancels."""
    x, w, h = (draw(*s, dtype=dtype).abs() for s in ((3, 64), (20, 64), (3, 20)))
    close = {"rtol": 2**-7 if dtype is BF16 else 1e-5, "atol": 0.0}
    torch.testing.assert_close(kernels.linear(x, w), reference.linear(x, w), **close)
    torch.testing.assert_close(kernels.neurons(h, w), reference.neurons(h, w), **close)
    q, k, v, valid = attention(dtype)
    v.abs_()
    got, wanted = kernels.attend(q, k, v, valid, 0.2), reference.attend(q, k, v, valid, 0.2)
    torch.testing.assert_close(got, wanted, **close)


def test_what_the_library_does_not_take_the_reference_does(native: Native) -> None:
    x, w = draw(2, 8, dtype=torch.float64), draw(5, 8, dtype=torch.float64)
    assert torch.equal(kernels.linear(x, w), x @ w.T)
    assert torch.equal(kernels.linear_many(x, [w, w])[1], x @ w.T)
    tall = draw(40, 8, dtype=torch.float32)
    assert torch.equal(kernels.linear(tall, w.float()), torch.nn.functional.linear(tall, w.float()))
    backwards = w.float().T.contiguous().T  # a weight stored by columns
    wanted = torch.nn.functional.linear(tall[:2], backwards)
    assert torch.equal(kernels.linear(tall[:2], backwards), wanted)
    with pytest.raises(RuntimeError):
        kernels.linear(x, w.float())
    with pytest.raises(RuntimeError):
        kernels.linear(x[:, :7].contiguous(), w)


def test_tracers_see_the_operators() -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, w = draw(1, 8, dtype=BF16), draw(3, 8, dtype=BF16)
    with Watch():
        kernels.linear(x, w)
        kernels.linear_many(x, [w, w])
        kernels.neurons(draw(1, 3, dtype=BF16), w)
        kernels.rms_norm(x, w[0], 1e-6)
    wanted = ["skimp.linear.default", "skimp.linear2.default", "skimp.neurons.default"]
    assert [name for name in seen if "skimp" in name] == [*wanted, "skimp.rms_norm.default"]


def step(
    x: Tensor, w: list[Tensor], cache: tuple[Tensor, Tensor], index: Tensor, valid: Tensor
) -> Tensor:
    """A small layer's decode step through every operator."""
    normal = kernels.rms_norm(x, w[4], 1e-6)
    q, k, v = kernels.linear_many(normal, w[:3])
    new = (part.view(x.shape[0], 1, 2, 12).transpose(1, 2) for part in (k, v))
    for kept, part in zip(cache, new, strict=True):
        kernels.store(kept, part, index)
    q = q.view(x.shape[0], 1, 2, 12).transpose(1, 2)
    mixed = kernels.attend(q, *cache, valid, 0.3, 0.0, None).flatten(2)
    gate, up = kernels.linear_many(mixed + x, w[:2])
    return x + kernels.neurons(torch.nn.functional.silu(gate) * up, w[3]) + kernels.linear(x, w[2])


def inputs(entries: int, dtype: torch.dtype = BF16) -> tuple[Any, ...]:
    w = [*(draw(24, 24, dtype=dtype, seed=s) / 5 for s in range(4)), draw(24, dtype=dtype)]
    cache = tuple(draw(2, 2, entries, 12, dtype=dtype, seed=s) for s in (7, 8))
    valid = torch.ones(2, 1, entries, dtype=torch.bool)
    return draw(2, 1, 24, dtype=dtype), w, cache, torch.tensor([entries - 2]), valid


@pytest.mark.parametrize("backend", ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow)))
def test_compiled_equals_eager_and_the_cache_may_grow(backend: str) -> None:
    torch._dynamo.reset()
    with torch.inference_mode():
        compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
        for entries in (10, 11, 40):
            once, again = inputs(entries), inputs(entries)
            # The first sizes may teach the compiler which of them vary; after that none may.
            with torch._dynamo.config.patch(error_on_recompile=entries != 10):
                got = compiled(*once)
            wanted = step(*again)
            torch.testing.assert_close(got, wanted, rtol=2**-6, atol=2**-6)
            for one, other, before in zip(once[2], again[2], inputs(entries)[2], strict=True):
                assert torch.equal(one, other) and not torch.equal(one, before)
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_compiled_store_writes_in_place_and_copies_no_cache() -> None:
    torch._dynamo.reset()
    arguments = inputs(10)
    places = [kept.data_ptr() for kept in arguments[2]]
    with torch.inference_mode():
        compiled = torch.compile(step, fullgraph=True)
        _, (code, *_) = run_and_get_code(compiled, *arguments)
    assert [kept.data_ptr() for kept in arguments[2]] == places
    stores = re.findall(r"skimp\.store\.default\((\w+),", code)
    assert len(stores) == 2
    assert all(re.search(rf"\b{kept}\b.* = args", code) for kept in stores), "not the caches"
    torch._dynamo.reset()
