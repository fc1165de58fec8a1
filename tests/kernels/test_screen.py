"""What a screened probe sees, natively and by its twin in torch."""

import pytest
import torch
from tests.kernels.exact import DTYPES, draw

from skimp.kernels.native import MOST_ROWS, Native
from skimp.methods.exit.screened import Screen
from skimp.methods.exit.values import CENTRES, REACH, SLOPE, TOKENS
from skimp.models.head import Head

KINDS, COUNT, HEIGHT, SIZE = 5, 37, 90, 50


def screen(dtype: torch.dtype, **head) -> Screen:
    generator = torch.Generator().manual_seed(7)
    picks = [torch.randperm(HEIGHT, generator=generator)[:COUNT] for _ in range(KINDS)]
    values = {
        CENTRES: torch.randn(KINDS, SIZE, generator=generator),
        SLOPE: torch.randn(SIZE, generator=generator) / SIZE,
        REACH: torch.randn(KINDS, generator=generator),
        TOKENS: torch.stack(picks).sort(-1).values,
    }
    return Screen(values, Head(draw(HEIGHT, SIZE, dtype=dtype), **head))


def assert_same(found, wanted, dtype: torch.dtype) -> None:
    assert torch.equal(found.kind, wanted.kind)
    assert torch.equal(found.token, wanted.token)
    slack = 2**-7 if dtype is torch.bfloat16 else 1e-5
    assert torch.allclose(found.logits, wanted.logits, rtol=slack, atol=slack)
    assert torch.allclose(found.features, wanted.features, rtol=slack, atol=slack)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("many", (1, 2, 7, MOST_ROWS))
@pytest.mark.parametrize("head", ({}, {"scale": 0.25}, {"softcap": 3.0}), ids=str)
def test_the_kernel_is_its_twin(
    isa: str, dtype: torch.dtype, many: int, head: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, z = screen(dtype, **head), draw(many, SIZE, dtype=dtype, seed=3)
    first = made.see_by_torch(z, None)
    monkeypatch.delattr(Screen, "see_by_torch")  # the native library takes the call
    assert len(first.kind.unique()) > 1 or many == 1
    assert_same(made.see(z, None), first, dtype)
    before = first.token.clone()
    before[::2] += 1
    again = made.see(z, before)
    assert again.features[:, 4].tolist() == [float(row % 2) for row in range(many)]


def test_a_bias_counts(native: Native) -> None:
    bias = draw(HEIGHT, dtype=torch.float32, seed=5)
    made, z = screen(torch.float32, bias=bias), draw(3, SIZE, dtype=torch.float32)
    assert_same(made.see(z, None), made.see_by_torch(z, None), torch.float32)


def test_of_equals_the_first_counts(native: Native) -> None:
    """Zero states make all logits equal, as half precision often does."""
    made = screen(torch.bfloat16)
    found = made.see(torch.zeros(2, SIZE, dtype=torch.bfloat16), None)
    assert found.token.tolist() == made.tokens[found.kind][:, 0].tolist()
    assert found.features[:, 0].tolist() == [0.0, 0.0]


def test_more_states_than_the_kernel_takes(native: Native) -> None:
    made, z = screen(torch.float32), draw(MOST_ROWS + 1, SIZE, dtype=torch.float32)
    assert made.see(z, None).token.tolist() == made.see_by_torch(z, None).token.tolist()


def test_tokens_that_the_head_lacks_are_refused(native: Native) -> None:
    made = screen(torch.float32)
    made.tokens[0, -1] = HEIGHT
    made.tokens[1:] = made.tokens[0]
    with pytest.raises(IndexError, match=r"tokens must lie in 0 \.\. 89"):
        made.see(draw(2, SIZE, dtype=torch.float32), None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_a_number_is_not_hidden(isa: str, dtype: torch.dtype) -> None:
    z = draw(1, SIZE, dtype=dtype)
    z[0, 3] = float("nan")
    found = screen(dtype).see(z, None)
    assert found.logits.isnan().all() and found.features[0, :2].isnan().all()
