"""GRIFFIN's statistic against its formula in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skimp.methods.experts import statistic
from skimp.methods.experts.statistic import score, shared, squares, totals


def reference(z: Tensor, real: Tensor) -> Tensor:
    """The paper's s² token by token, in float64 [B, F]."""
    sums = torch.zeros(z.shape[0], z.shape[2], dtype=torch.float64)
    for row in range(z.shape[0]):
        for token in range(z.shape[1]):
            values = z[row, token].double()
            if real[row, token] and values.norm() > 0:
                sums[row] += (values / values.norm()) ** 2
    return sums


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Neurons [B, S, F], some tokens all zero, and which tokens are real [B, S]."""
    shape = [draw(st.integers(1, 3)), draw(st.integers(0, 6)), draw(st.integers(1, 9))]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = 10.0 ** torch.randint(-3, 4, (*shape[:2], 1), generator=random)
    z = torch.randn(shape, generator=random) * scale
    z *= torch.rand(shape, generator=random) < draw(st.sampled_from([1, 0.5, 0.1]))
    z *= torch.rand(*shape[:2], 1, generator=random) < 0.8
    real = torch.rand(*shape[:2], generator=random) < draw(st.sampled_from([1, 0.6]))
    return z.to(dtype), real


@given(prompt=prompts())
def test_formula(prompt: tuple[Tensor, Tensor]) -> None:
    z, real = prompt
    before = z.clone()
    found = squares(z, real)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), reference(z, real), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        score(found).double(), reference(z, real).sqrt(), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(z, before)


@given(prompt=prompts())
def test_without_padding_every_token_counts(prompt: tuple[Tensor, Tensor]) -> None:
    z, _ = prompt
    assert torch.equal(squares(z), squares(z, torch.ones(z.shape[:2], dtype=torch.bool)))


@given(prompt=prompts(), data=st.data())
def test_chunks_add_up(prompt: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    z, real = prompt
    cut = data.draw(st.integers(0, z.shape[1]))
    parts = squares(z[:, :cut], real[:, :cut]) + squares(z[:, cut:], real[:, cut:])
    torch.testing.assert_close(parts, squares(z, real), rtol=1e-5, atol=1e-6)


@given(prompt=prompts())
def test_sums_to_the_tokens_that_are_not_zero(prompt: tuple[Tensor, Tensor]) -> None:
    z, real = prompt
    tokens = (real & (z != 0).any(-1)).sum(-1)
    torch.testing.assert_close(squares(z, real).sum(-1), tokens.float())


@given(prompt=prompts(), rubbish=st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e4]))
def test_what_stands_in_the_padding_does_not_matter(
    prompt: tuple[Tensor, Tensor], rubbish: float
) -> None:
    z, real = prompt
    dirty = z.masked_fill(~real.unsqueeze(-1), rubbish)
    assert torch.equal(squares(dirty, real), squares(z, real))


def test_extremes() -> None:
    z = torch.tensor([[[3e38, 3e38], [1e-38, 0.0], [0.0, 0.0], [torch.nan, 1], [torch.inf, 1]]])
    torch.testing.assert_close(squares(z), torch.tensor([[1.5, 0.5]]))


def test_no_tokens_at_all() -> None:
    assert torch.equal(squares(torch.zeros(2, 0, 3)), torch.zeros(2, 3))
    assert torch.equal(squares(torch.zeros(2, 4, 3)), torch.zeros(2, 3))


@given(prompt=prompts())
def test_shared_formula(prompt: tuple[Tensor, Tensor]) -> None:
    z, real = prompt
    wanted = torch.zeros(1, z.shape[2], dtype=torch.float64)
    for row, sums in enumerate(reference(z, real)):
        if real[row].any():
            wanted[0] += sums.sqrt() / real[row].sum().double().sqrt()
    found = shared(squares(z, real), real.sum(-1))
    assert found.shape == (1, z.shape[2])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@given(prompt=prompts(), at_once=st.integers(1, 40))
def test_long_prompts_are_taken_in_parts(prompt: tuple[Tensor, Tensor], at_once: int) -> None:
    z, real = prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistic, "_AT_ONCE", at_once)
        found, sums = squares(z, real), totals(z, real)
    torch.testing.assert_close(found.double(), reference(z, real), rtol=1e-5, atol=1e-7)
    wanted = (z.double() * real.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-4, atol=1e-2)
