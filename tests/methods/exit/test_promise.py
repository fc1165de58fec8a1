"""The promise: that its bound holds on correlated tokens, and how thresholds are picked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skimp.methods.exit.promise import calibrate, design_effect, grid, outcome, upper_bound


def _drawn(documents: int, seed: int, *, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Scores and wrong [2, n] of two probes; documents differ in how hard they are."""
    random = np.random.default_rng(seed)
    lengths = random.integers(20, 200, documents)
    document = np.repeat(np.arange(documents), lengths)
    hard = np.repeat(random.normal(0, spread, documents), lengths)
    scores, wrong = [], []
    for depth in (0.0, 1.0):
        truth = depth + 1.5 - hard + random.normal(0, 1.5, len(document))
        scores.append(truth + hard + random.normal(0, 0.5, len(document)))
        wrong.append(random.random(len(document)) < 1 / (1 + np.exp(2 * truth)))
    return (
        torch.tensor(np.stack(scores)),
        torch.tensor(np.stack(wrong)),
        torch.tensor(document),
    )


def test_the_promise_holds_in_nineteen_of_twenty_draws() -> None:
    scores, wrong, document = _drawn(3_000, 0)  # as good as the truth
    kept, loose = 0, 0.0
    draws, steps = 100, grid(scores[:, :20_000], 20)
    truths = {each: 1 - float(outcome(scores, wrong, each).wrong.double().mean()) for each in steps}
    for seed in range(draws):
        own = _drawn(50, seed + 1)
        (level,) = calibrate(*own, steps, [0.95])
        kept += truths.get(level.threshold, 1.0) >= 0.95
        loose += level.exits
    # Binomial(100, 0.95) is below 90 in 1% of cases.
    assert kept >= 90
    assert loose / draws > 0.05  # it is not kept by never leaving
    assert document.max() == 2_999


def test_taking_tokens_for_independent_would_break_it() -> None:
    random = np.random.default_rng(0)
    missed = {"clustered": 0, "independent": 0}
    for _ in range(300):
        rates = random.beta(0.2, 1.8, 60)  # one in ten, very different by document
        tokens = np.full(60, 100.0)
        wrong = random.binomial(100, rates).astype(float)
        missed["clustered"] += upper_bound(wrong, tokens) < 0.1
        whole = upper_bound(np.repeat(wrong / 100, 100), np.ones(6000))
        missed["independent"] += whole < 0.1
    assert missed["clustered"] <= 0.08 * 300
    assert missed["independent"] > 0.2 * 300


def test_the_bound_of_independent_tokens_is_the_exact_one() -> None:
    from scipy.stats import beta

    tokens = np.ones(5000)
    wrong = np.zeros(5000)
    assert upper_bound(wrong, tokens) == pytest.approx(1 - 0.05 ** (1 / 5000), rel=0.01)
    wrong[:50] = 1
    assert upper_bound(wrong, tokens) == pytest.approx(beta.ppf(0.95, 51, 4950), rel=0.01)


def test_one_document_proves_nothing() -> None:
    assert upper_bound(np.zeros(1), np.full(1, 1e6)) == 1.0


@given(st.integers(0, 2**31), st.floats(1, 50))
def test_more_correlation_never_tightens_the_bound(seed: int, effect: float) -> None:
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 50, 20).astype(float)
    wrong = np.floor(tokens * random.random(20) * 0.5)
    assert upper_bound(wrong, tokens, effect=effect) >= upper_bound(wrong, tokens) - 1e-12
    assert upper_bound(wrong, tokens) >= wrong.sum() / tokens.sum()


def test_design_effect_of_whole_documents_is_their_length() -> None:
    wrong = np.where(np.arange(400) % 4 == 0, 10.0, 0.0)
    assert design_effect(wrong, np.full(400, 10.0)) == pytest.approx(10, rel=0.01)


def test_a_token_leaves_at_the_first_probe_that_is_sure() -> None:
    scores = torch.tensor([[1.0, 3.0, 0.0, 0.0], [2.0, 0.0, 2.0, 1.0]])
    wrong = torch.tensor([[True, True, False, True], [False, False, True, True]])
    found = outcome(scores, wrong, 2.0)
    assert found.left_at.tolist() == [1, 0, 1, 2]
    assert found.wrong.tolist() == [False, True, True, False]
    assert outcome(scores, wrong, float("inf")).left_at.tolist() == [2, 2, 2, 2]


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_looser_levels_never_have_stricter_thresholds(seed: int) -> None:
    own = _drawn(30, seed)
    levels = calibrate(*own, grid(own[0], 30), [0.99, 0.95, 0.9, 0.5])
    found = [level.threshold for level in levels]
    assert found == sorted(found, reverse=True)
    for level in levels:
        assert level.seen >= level.at_least >= level.agreement or level.threshold == float("inf")


def test_where_none_holds_no_token_leaves() -> None:
    scores = torch.zeros(1, 2000)
    wrong = torch.ones(1, 2000, dtype=torch.bool)
    (level,) = calibrate(scores, wrong, torch.arange(2000) // 20, [1.0, 0.0], [0.99])
    assert level.threshold == 1.0 and level.exits == 0  # nobody reaches it
    (level,) = calibrate(scores, wrong, torch.arange(2000) // 20, [0.0], [0.99])
    assert level.threshold == float("inf")


def test_the_first_failure_ends_the_search() -> None:
    # Strict fails, loose would pass by luck: leaving nowhere is what is left.
    scores = torch.tensor([[5.0] * 100 + [1.0] * 4900])
    wrong = torch.zeros(1, 5000, dtype=torch.bool)
    wrong[0, :60] = True
    document = torch.arange(5000) % 50
    assert calibrate(scores, wrong, document, [4.0, 0.0], [0.99])[0].threshold == float("inf")
    assert calibrate(scores, wrong, document, [4.0, 0.0], [0.9])[0].threshold == 0.0
