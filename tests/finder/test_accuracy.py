"""Accuracy as a budget: which half an item is in, what it may prove, and what is lacking."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import families
from tests.tiny import byte_tokenizer

from skimp.errors import SkimpError
from skimp.finder.accuracy import (
    Accuracies,
    Scored,
    Scorer,
    found_tasks,
    half_of,
    judge_half,
    order_of,
    score_near,
    would_pass,
)
from skimp.finder.budget import Budget
from skimp.finder.proof import Verdict
from skimp.finder.select import select
from skimp.finder.state import State
from skimp.measure.metrics import Metric
from skimp.measure.quality import Evaluation, TaskScores
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

LIMIT = Budget.parse(["accuracy(a,b)>=-2"]).limits[0]


def evaluation(lost: float, count: int = 400, seed: int = 0, items: int = 0) -> Evaluation:
    """Two tasks, 60% right; so large a share of the items turns wrong, and a tenth turns over."""
    tasks = {}
    for name in "ab":
        random = np.random.default_rng([ord(name), items])
        right = random.random(count) < 0.6
        hashes = tuple(f"{n:016x}" for n in random.permutation(count))
        turned = np.random.default_rng([ord(name), seed])
        wrong = turned.random(count) < lost / 0.6 + 0.05
        gained = turned.random(count) < 0.05 * 0.6 / 0.4
        after = np.where(right, ~wrong, gained) if seed else right
        scores = tuple(after.astype(float).tolist())
        metric = Metric("mean", True, scores, (1.0,) * count)
        tasks[name] = TaskScores(name, "acc", {"acc": metric}, hashes)
    return Evaluation(tasks, None, 0, "packed", 1.0)


def test_a_half_is_told_by_the_item_alone() -> None:
    halves = [half_of(f"{n:016x}") for n in range(64)]
    assert halves.count("proving") == 32
    assert half_of("00000000000000f3") == half_of("ab000000000000f3")


def test_each_half_is_judged_by_its_own_items() -> None:
    dense, planned = evaluation(0, items=1), evaluation(0.01, items=1, seed=5)
    one, other = (judge_half(LIMIT, dense, planned, half) for half in ("choosing", "proving"))
    assert one.tokens + other.tokens == 800 and one.documents == 2
    assert one.seen != other.seen
    task = planned.tasks["a"]
    flipped = tuple(
        1 - score if half_of(item) == "choosing" else score
        for score, item in zip(task.primary.scores, task.items, strict=True)
    )
    metric = Metric("mean", True, flipped, task.primary.weights)
    tasks = {**planned.tasks, "a": TaskScores("a", "acc", {"acc": metric}, task.items)}
    moved = Evaluation(tasks, None, 0, "packed", 1.0)
    assert judge_half(LIMIT, dense, moved, "proving") == other
    assert judge_half(LIMIT, dense, moved, "choosing") != one


def test_at_the_limit_few_plans_pass() -> None:
    passed = [
        judge_half(
            LIMIT, evaluation(0, items=n), evaluation(0.02, items=n, seed=n), "proving"
        ).holds
        for n in range(1, 401)
    ]
    assert np.mean(passed) < 0.09


def test_what_is_lacking_would_do() -> None:
    found = judge_half(LIMIT, evaluation(0, 100), evaluation(0, 100, seed=3), "proving")
    assert not found.holds and found.lacking is not None
    more = int((found.tokens + found.lacking) * 1.2)
    assert judge_half(LIMIT, evaluation(0, more), evaluation(0, more, seed=4), "proving").holds


def test_a_perplexity_is_no_accuracy() -> None:
    dense = evaluation(0)
    metric = Metric("perplexity", False, (-1.0,) * 400, (1.0,) * 400)
    task = TaskScores("a", "perplexity", {"perplexity": metric}, dense.tasks["a"].items)
    wrong = Evaluation({"a": task}, None, 0, "packed", 1.0)
    with pytest.raises(SkimpError, match="task a has no accuracy"):
        judge_half(LIMIT, wrong, wrong, "proving")
    with pytest.raises(SkimpError, match="only 6 items"):
        judge_half(LIMIT, evaluation(0, 6), evaluation(0, 6), "proving")


def scored(seen: float, bound: float, proven: float | None = None) -> Scored:
    def verdict(low: float) -> Verdict:
        return Verdict(low >= LIMIT.value, seen, low, 400, 2, None if low >= LIMIT.value else 90)

    return Scored(verdict(bound), verdict(bound if proven is None else proven))


@pytest.mark.parametrize("good", range(9))
def test_few_plans_need_to_be_scored(good: int) -> None:
    """Of eight, of which the first so many would pass, at most five; and no failure is tested."""
    looked: list[int] = []

    def score(number: int) -> Scored:
        looked.append(number)
        return scored(0.0, -0.01 if number < good else -0.1)

    order = order_of(range(8), score, lambda: False)
    assert len(looked) <= 5 and set(order) <= set(looked)
    if good:
        assert order[-2:] == tuple(range(8))[max(0, good - 2) : good]
        assert list(order) == sorted(order)
    else:
        assert order == (0,)


def entries(speeds: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "source": "finder",
            "file": str(number),
            "speedup": None,
            "speedup_interval": None,
            "byte_bound": speed,
            "loss_difference": 0.1 * number,
            "joint": 0.1 * number,
            "tokens": 1600,
            "accuracy": None,
        }
        for number, speed in enumerate(speeds, 1)
    ]


def selection(every: dict[int, Scored], speeds: Sequence[float] = (1.1, 1.2, 1.4)) -> Any:
    found = entries(speeds)

    class Made:
        limit = LIMIT

        def __call__(self, file: str) -> Scored:
            return every[int(file)]

    accuracies = score_near(found, Made())  # type: ignore[arg-type]
    sums = {entry["number"]: [[40.0, 1, 1, 0, 0, 0, 0]] * 9 for entry in found}
    budget = Budget((LIMIT,))
    return select(budget, found, sums, lambda _: (1.0, (1.0, 1.0)), accuracies), found


def test_the_fastest_plan_that_is_proven() -> None:
    every = {1: scored(0, -0.01), 2: scored(-0.005, -0.015), 3: scored(-0.05, -0.06)}
    found, noted = selection(every)
    assert found.number == 2
    assert "mean accuracy changes by at least -1.5 points (seen -0.5 points)" in found.words
    assert "400 items of a, b" in found.words
    assert [would_pass(entry) for entry in noted] == [True, True, False]


def test_a_plan_that_the_proving_half_refutes_is_not_handed_out() -> None:
    every = {1: scored(0, -0.01), 2: scored(-0.005, -0.015, -0.03), 3: scored(-0.05, -0.06)}
    assert selection(every)[0].number == 1
    every[1] = scored(0, -0.01, -0.021)
    found, _ = selection(every)
    assert found.number is None
    assert "could not be shown to keep accuracy(a,b)>=-2" in found.words
    assert "needs about 180 more items" in found.words


def test_unscored_plans_are_never_handed_out() -> None:
    sums = {entry["number"]: [[40.0, 1, 1, 0, 0, 0, 0]] * 9 for entry in entries((1.1, 1.2))}
    none = Accuracies(LIMIT, (), {})
    found = select(Budget((LIMIT,)), entries((1.1, 1.2)), sums, lambda _: (1, (1, 1)), none)
    assert found.number is None and "No plan was scored" in found.words


def test_real_tasks_are_found_and_proven_on_half_of_their_items(
    shared_eval: Path, tmp_path: Path
) -> None:
    limit = Budget.parse(["accuracy(local_arc_easy,local_piqa)>=-40"]).limits[0]
    model: Any = families.build("llama")
    model.config.max_position_embeddings = 2048  # a token a byte
    state = State(tmp_path / "s", {})
    last = Anatomy.of(model).dense_layers - 1
    plan = Plan.empty(Anatomy.of(model)).with_section("drop", {"attention": [last], "fill": "zero"})
    plan.write(state.plan("one"))
    tasks = found_tasks(limit, shared_eval)
    scorer = Scorer(model, byte_tokenizer(), limit, tasks, state, items=40)
    found = scorer("one")
    assert found.choosing.tokens + found.proving.tokens == 80
    assert found.proving.documents == 2 and found.proving.holds
    assert scorer("one") == found  # remembered
    dense = state.folder.glob("scored-*-dense.json")
    assert len(list(dense)) == 1
