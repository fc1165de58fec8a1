"""Draws: their exact distribution, and that they hang on the seed and the row alone."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.drawing import CASES, drawn, random_logits, theirs
from torch import Tensor

from skimp.engine.sampling import Sampler, Sampling, draw


def chance(counts: Tensor, expected: Tensor) -> float:
    """Pearson's test: how likely counts at least this far from what is expected are."""
    possible = expected > 0
    assert counts[~possible].sum() == 0, "a token was drawn that cannot be"
    counts, expected = counts[possible].double(), expected[possible].double()
    # Cells too rare for the test go into one.
    common = expected >= 5
    if not common.all():
        counts = torch.cat([counts[common], counts[~common].sum()[None]])
        expected = torch.cat([expected[common], expected[~common].sum()[None]])
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2)) if len(counts) > 1 else 1.0


# --- the distribution


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_draws_follow_the_exact_distribution(sampling: Sampling) -> None:
    logits = random_logits(1, 16, seed=7).expand(10, 16)
    tokens = drawn(logits, sampling, 2000)
    counts = tokens.flatten().bincount(minlength=16)
    assert chance(counts, 20_000 * theirs(logits[:1], sampling)[0]) > 1e-3


def test_the_test_of_the_distribution_can_fail() -> None:
    logits = random_logits(1, 16, seed=7).expand(10, 16)
    counts = drawn(logits, Sampling(temperature=1), 2000).flatten().bincount(minlength=16)
    assert chance(counts, 20_000 * theirs(logits, Sampling(temperature=1.1))[0]) < 1e-6


@pytest.mark.parametrize(
    "pairs", [lambda t: (t[:-1], t[1:]), lambda t: (t[:, :-1], t[:, 1:])], ids=["steps", "rows"]
)
def test_neighbouring_draws_are_independent(pairs: Any) -> None:
    tokens = drawn(torch.zeros(100, 8), Sampling(temperature=1, seed=11), 200)
    first, second = pairs(tokens)
    counts = (8 * first + second).flatten().bincount(minlength=64)
    assert chance(counts, torch.full((64,), counts.sum() / 64)) > 1e-3


@given(size=st.integers(1, 2000), place=st.integers(0, 1999), seed=st.integers(0, 1000))
def test_a_filtered_token_is_never_drawn(size: int, place: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(4, size, generator=generator)
    found *= torch.rand(4, size, generator=generator) < 0.3
    found[:, place % size] = 0.1
    # Also where the random number is the least or the largest there is.
    for uniform in (0.0, math.nextafter(1, 0), 0.5):
        tokens = draw(found, torch.full((4, 1), uniform, dtype=torch.float64))
        assert (found.gather(1, tokens[:, None]) > 0).all()


def test_rare_tokens_keep_their_place() -> None:
    # Of these chances float32 random numbers would know nothing.
    found = torch.tensor([[1.0, 1e-9]])
    inside = torch.tensor([[1 - 5e-10]], dtype=torch.float64)
    assert draw(found, inside).tolist() == [1]
    uniform = Sampler(Sampling(temperature=1), 9, 2, "cpu")._next_uniform()
    assert (uniform != uniform.float()).any()


def test_the_penalty_is_in_the_distribution() -> None:
    sampling = Sampling(temperature=1, top_k=6, repetition_penalty=1.8, seed=9)
    logits, ids = random_logits(1, 16, seed=7), torch.tensor([[3, 5, 5, 1, 0]])
    # A sequence of its own for every draw, since what is drawn is penalised from then on.
    sampler = Sampler(sampling, 20_000, 16, "cpu")
    sampler.see(ids.expand(20_000, -1))
    counts = sampler.pick(logits.expand(20_000, 16)).bincount(minlength=16)
    assert chance(counts, 20_000 * theirs(logits, sampling, ids)[0]) > 1e-3


# --- seeds, rows and requests


@pytest.mark.parametrize("sampling", [*CASES, Sampling(temperature=1, repetition_penalty=1.5)])
def test_a_sequence_draws_alike_in_any_batch(sampling: Sampling) -> None:
    steps = [random_logits(5, 1237, seed=step) for step in range(40)]
    full, fewer = Sampler(sampling, 5, 1237, "cpu"), Sampler(sampling, 2, 1237, "cpu")
    for number, logits in enumerate(steps):
        others = torch.cat([logits[:2], random_logits(3, 1237, seed=-1 - number)])
        assert torch.equal(full.pick(others)[:2], fewer.pick(logits[:2]))


def test_draws_hang_on_the_seed_and_the_row_alone() -> None:
    logits = torch.zeros(3, 1000)
    state = torch.random.get_rng_state()
    first = drawn(logits, Sampling(temperature=1, seed=5), 300)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(drawn(logits, Sampling(temperature=1, seed=5), 300), first)
    for row in range(3):
        others = [first[:, other] for other in range(3) if other != row]
        others.append(drawn(logits, Sampling(temperature=1, seed=6), 300)[:, row])
        others.append(drawn(logits, Sampling(temperature=1, seed=5 + 2**32), 300)[:, row])
        for other in others:
            assert (first[:, row] == other).sum() < 10
    # No number comes again, also past the point where more are made.
    assert not torch.equal(first[:20], first[256:276])


def test_interleaved_requests_do_not_touch_each_other() -> None:
    sampling = Sampling(temperature=1, repetition_penalty=1.2, seed=3)
    logits = random_logits(2, 100)
    alone = drawn(logits, sampling, 50)
    mine, other = (Sampler(sampling, 2, 100, "cpu") for _ in range(2))
    found = []
    for _ in range(50):
        found.append(mine.pick(logits))
        other.pick(-logits)
    assert torch.equal(torch.stack(found), alone)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("sampling", [Sampling(), *CASES], ids=str)
def test_a_gpu_draws_the_same_and_never_waits(sampling: Sampling) -> None:
    logits = random_logits(3, 5000, spread=4)
    there = logits.cuda()
    sampler, found = Sampler(sampling, 3, 5000, "cuda"), []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(300):
            found.append(sampler.pick(there))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    same = torch.stack(found).cpu() == drawn(logits, sampling, 300)
    assert same.float().mean() > 0.999  # a rounding may tip a draw
