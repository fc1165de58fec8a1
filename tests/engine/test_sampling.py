"""Sampling: the filters against transformers' own, the penalty, and what is refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.drawing import CASES, drawn, random_logits, theirs
from torch import Tensor
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from skimp.engine.sampling import Sampler, Sampling, _nucleus_edge, check, weights
from skimp.errors import RequestError

SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 5),
        "top_k": st.integers(0, 40),
        "top_p": st.one_of(st.just(1.0), st.floats(0.01, 0.9999)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.001, 1)),
    }
)


def ours(logits: Tensor, sampling: Sampling) -> Tensor:
    found = weights(logits, sampling).double()
    return found / found.sum(-1, keepdim=True)


# --- filters


@given(settings=SETTINGS, seed=st.integers(0, 10**6), size=st.integers(1, 60))
def test_filters_equal_those_of_transformers(settings: Any, seed: int, size: int) -> None:
    sampling = Sampling(**settings)
    logits = random_logits(3, size, seed=seed)
    # Kept or filtered shows in any probability; only what float32 itself cannot hold is let pass.
    tiny = torch.finfo(torch.float32).tiny
    torch.testing.assert_close(
        ours(logits, sampling), theirs(logits, sampling), rtol=1e-4, atol=tiny
    )


@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.999])
@pytest.mark.parametrize("top_k", [0, 2000])
def test_a_wide_nucleus_beside_a_narrow_one(top_p: float, top_k: int) -> None:
    # One row's nucleus holds thousands of tokens, the other's a few.
    logits = torch.cat([random_logits(1, 6000, spread=0.1), random_logits(1, 6000, spread=9)])
    sampling = Sampling(temperature=1, top_p=top_p, top_k=top_k)
    found = ours(logits, sampling)
    torch.testing.assert_close(found, theirs(logits, sampling), rtol=1e-4, atol=0)
    for row in range(2):
        assert torch.equal(ours(logits[row : row + 1], sampling)[0], found[row])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_dtype(dtype: torch.dtype) -> None:
    logits = random_logits(2, 50).to(dtype)
    sampling = Sampling(temperature=0.7, top_p=0.9)
    assert torch.equal(weights(logits, sampling), weights(logits.float(), sampling))
    for chosen in (sampling, Sampling(), Sampling(repetition_penalty=1.3)):
        assert torch.equal(drawn(logits, chosen, 9), drawn(logits.float(), chosen, 9))


# Of 24 in all: probabilities 0.17, 0.33, 0.08, 0.17 and 0.25.
ODDS = torch.tensor([[4.0, 8.0, 2.0, 4.0, 6.0]])


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 10**9}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 4]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.33}, [1]),
        ({"top_p": 0.34}, [1, 4]),
        ({"top_p": 0.99}, [0, 1, 2, 3, 4]),
        ({"min_p": 1.0}, [1]),
        ({"min_p": 0.51}, [1, 4]),
        # Equals stay together.
        ({"min_p": 0.49}, [0, 1, 3, 4]),
        ({"top_k": 3}, [0, 1, 3, 4]),
        ({"top_p": 0.62}, [0, 1, 3, 4]),
        ({"top_k": 3, "top_p": 0.7}, [0, 1, 3, 4]),
        # top-p asks for its share of what top-k left, and min-p does not change what that is.
        ({"top_k": 4, "top_p": 0.62}, [1, 4]),
        ({"top_p": 0.55, "min_p": 0.6}, [1, 4]),
    ],
)
def test_examples(settings: Any, kept: list[int]) -> None:
    found = weights(ODDS.log(), Sampling(temperature=1, **settings))
    assert found[0].nonzero().flatten().tolist() == kept
    torch.testing.assert_close(found[0, kept], ODDS[0, kept] / 8)
    assert found[0, 1] == 1


@pytest.mark.parametrize(("top_p", "edge"), [(0.49, 4), (0.5, 4), (0.51, 2), (0.75, 2), (0.76, 1)])
def test_a_nucleus_that_just_holds_its_share_is_enough(top_p: float, edge: float) -> None:
    found = torch.tensor([[1.0, 4.0, 1.0, 2.0]])
    assert _nucleus_edge(found, None, top_p).tolist() == [[edge]]


@given(settings=SETTINGS, place=st.integers(0, 6))
def test_one_possible_token_is_always_drawn(settings: Any, place: int) -> None:
    logits = torch.full((1, 7), -torch.inf)
    logits[0, place] = -3.0
    for chosen in (Sampling(**settings), Sampling()):
        assert drawn(logits, chosen, 5).unique().tolist() == [place]


@pytest.mark.parametrize(("coldness", "kept"), [(1e-300, 1), (1e-40, 1), (1e38, 3), (1e300, 3)])
def test_extreme_temperatures(coldness: float, kept: int) -> None:
    logits = torch.tensor([[900.0, -torch.inf, 899.0, -900.0]])
    found = weights(logits, Sampling(temperature=coldness))
    assert found.tolist() == [[1.0, 0.0, 1.0, 1.0] if kept == 3 else [1.0, 0.0, 0.0, 0.0]]


# --- greedy and the penalty


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [-5.0, -6.0, -5.0]])
    assert Sampler(Sampling(), 2, 3, "cpu").pick(logits).tolist() == [1, 0]


@given(
    penalty=st.floats(0.2, 5),
    seed=st.integers(0, 10**6),
    ids=st.lists(st.integers(0, 19), min_size=1, max_size=30),
)
def test_the_penalty_equals_that_of_transformers(penalty: float, seed: int, ids: list[int]) -> None:
    sampling = Sampling(repetition_penalty=penalty)
    sampler = Sampler(sampling, 1, 20, "cpu")
    sampler.see(torch.tensor([ids]))
    processor: Any = RepetitionPenaltyLogitsProcessor(penalty)
    for step in range(4):
        logits = random_logits(1, 20, seed=seed + step)
        token = int(sampler.pick(logits))
        assert token == int(processor(torch.tensor([ids]), logits).argmax())
        ids = [*ids, token]


def test_padding_is_not_seen() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0]]).expand(2, 3)
    sampler = Sampler(Sampling(repetition_penalty=9), 2, 3, "cpu")
    # Token 0 is padding in the first sequence, and both padding and text in the second.
    ids = torch.tensor([[0, 0, 1], [0, 0, 0]])
    sampler.see(ids, torch.tensor([[0, 0, 1], [0, 1, 0]], dtype=torch.bool))
    assert sampler.pick(logits).tolist() == [0, 1]


def test_what_is_picked_is_seen_by_its_own_sequence() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0], [3.0, 5.0, 4.0]])
    sampler = Sampler(Sampling(repetition_penalty=9), 2, 3, "cpu")
    assert [sampler.pick(logits).tolist() for _ in range(3)] == [[0, 1], [1, 2], [2, 0]]


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
def test_extreme_penalties_leave_numbers(penalty: float) -> None:
    logits = torch.tensor([[8.0, -8.0, 0.0, -torch.inf]])
    sampler = Sampler(Sampling(temperature=1, repetition_penalty=penalty), 1, 4, "cpu")
    sampler.see(torch.tensor([[0, 1]]))
    assert sampler.pick(logits).tolist() == [0 if penalty < 1 else 2]


@pytest.mark.parametrize("inside", [True, False])
def test_a_request_may_leave_or_enter_inference_mode(inside: bool) -> None:
    sampling = Sampling(temperature=1, repetition_penalty=2)
    with torch.inference_mode(inside):
        sampler = Sampler(sampling, 1, 5, "cpu")
        sampler.see(torch.tensor([[1, 2]]))
    with torch.inference_mode(not inside):
        sampler.see(torch.tensor([[1, 3]]))
        sampler.pick(torch.zeros(1, 5))


# --- what a GPU needs, and what cannot be


@pytest.mark.parametrize(
    "sampling", [Sampling(), *CASES, Sampling(temperature=1, repetition_penalty=2)], ids=str
)
def test_no_pick_looks_at_a_value(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skimp.engine.sampling._BLOCK", 4)  # new random numbers come in between
    # Tensors without values refuse whatever would make the host wait for a GPU.
    sampler = Sampler(sampling, 3, 5000, "meta")
    sampler.see(torch.zeros(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.bool))
    logits = torch.zeros(3, 5000, device="meta", dtype=torch.bfloat16)
    tokens = [sampler.pick(logits) for _ in range(10)][-1]
    assert (tokens.shape, tokens.dtype, tokens.device.type) == ((3,), torch.int64, "meta")
    with pytest.raises(RuntimeError):
        check(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_that_are_no_numbers_are_named(dtype: torch.dtype) -> None:
    good = random_logits(3, 20).to(dtype)
    good[0, :19] = -torch.inf
    check(good)
    for bad in (torch.nan, torch.inf):
        logits = good.clone()
        logits[1, 7] = bad
        with pytest.raises(RequestError, match="NaN or infinity for sequence 1 of the batch"):
            check(logits)
    logits = good.clone()
    logits[1:] = -torch.inf
    with pytest.raises(RequestError, match="every token for sequences 1, 2 of the batch"):
        check(logits)


@pytest.mark.parametrize("sampling", [Sampling(), *CASES], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_still_give_an_index(sampling: Sampling, bad: float) -> None:
    # An index past the vocabulary would take a GPU's whole context down before `check` is asked.
    logits = torch.full((2, 30), bad)
    logits[1] = random_logits(30)
    logits[1, 3] = torch.nan
    tokens = drawn(logits, sampling, 20)
    assert ((tokens >= 0) & (tokens < 30)).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", None),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 0.5),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{name}: {value!r} does not fit; give "):
        Sampling(**{name: value})


def test_logits_and_prompts_of_another_shape_are_refused() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2), 2, 10, "cpu")
    for shape in ((2, 11), (1, 10), (2, 1, 10)):
        with pytest.raises(ValueError, match="logits"):
            sampler.pick(torch.zeros(shape))
    with pytest.raises(ValueError, match="ids"):
        sampler.see(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="mask"):
        sampler.see(torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool))
