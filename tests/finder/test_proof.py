"""Promises hold as often as they say, and say what is lacking where they cannot be made."""

import numpy as np
import pytest

from skimp.finder.budget import Budget
from skimp.finder.proof import judge, pass_in_order

LIMIT = Budget.parse(["loss<=5%"]).limits[0]


def sums(loss: float, *, documents: int, noise: float, seed: int) -> list[list[float]]:
    """Sums of made-up documents of 40 tokens whose loss rises by `loss` a token in the mean."""
    random = np.random.default_rng(seed)
    rises = 40 * (loss + noise * random.standard_normal(documents))
    return [[40.0, 100.0, 100.0 + rise, abs(rise), 0.0, 0.0, 0.0] for rise in rises]


def test_at_the_limit_a_plan_passes_one_time_in_twenty() -> None:
    passed = [
        judge(LIMIT, sums(LIMIT.value, documents=30, noise=0.1, seed=seed)).holds
        for seed in range(2000)
    ]
    assert np.mean(passed) == pytest.approx(0.05, abs=0.015)


def test_looking_at_many_plans_does_not_break_the_promise() -> None:
    """Ten plans just over the limit, with luck of their own: rarely is any of them passed."""
    wrong = 0
    for seed in range(400):
        every = [
            sums(LIMIT.value, documents=30, noise=0.1, seed=1000 * seed + number)
            for number in range(10)
        ]
        wrong += pass_in_order([LIMIT], every).last is not None
    assert wrong / 400 < 0.08


def test_the_first_failure_ends_it() -> None:
    good, bad = (sums(loss, documents=30, noise=0.01, seed=1) for loss in (0.0, 0.2))
    found = pass_in_order([LIMIT], [good, good, bad, good])
    assert (found.last, found.failed, found.looked_at) == (1, 2, 3)
    assert pass_in_order([LIMIT], [bad, good]).last is None


def test_what_is_lacking_would_do() -> None:
    found = judge(LIMIT, sums(0.03, documents=20, noise=0.15, seed=3))
    assert not found.holds and found.lacking is not None
    many = (found.tokens + found.lacking) * 1.3 / 40
    again = judge(LIMIT, sums(found.seen, documents=int(many), noise=0.15, seed=4))
    assert again.bound - again.seen <= LIMIT.value - found.seen


def test_a_plan_beyond_the_limit_lacks_no_tokens() -> None:
    found = judge(LIMIT, sums(0.2, documents=30, noise=0.01, seed=1))
    assert not found.holds and found.lacking is None


def test_one_document_proves_nothing() -> None:
    assert not judge(LIMIT, sums(0.0, documents=1, noise=0.0, seed=1)).holds
