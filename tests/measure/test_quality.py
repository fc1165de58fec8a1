"""Scores per item, the same as the harness computes; comparisons paired over items."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.families import build
from tests.measure import tiny

from skimp.errors import EvaluationError
from skimp.measure.metrics import Metric
from skimp.measure.quality import Evaluation, TaskScores, compare, evaluate, overall


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


needs_harness = [pytest.mark.eval, pytest.mark.usefixtures("_own_cache")]


def _marked(function: Any) -> Any:
    for mark in needs_harness:
        function = mark(function)
    return function


@_marked
@pytest.mark.parametrize("limit", [None, 5])
def test_scores_are_those_of_the_harness(suite: Path, limit: int | None) -> None:
    from lm_eval.evaluator import evaluate as reference
    from lm_eval.models.huggingface import HFLM

    from skimp.measure.tasks import load_tasks

    model, tokens = build("llama"), tiny.tokenizer()
    tasks = {"tasks": load_tasks(str(suite))}
    expected: Any = reference(
        HFLM(pretrained=model, tokenizer=tokens), tasks, limit=limit, bootstrap_iters=0
    )
    found = evaluate(model, tokens, str(suite), limit=limit)
    assert list(found.tasks) == list(tasks["tasks"])
    assert found.items == 3 * (limit or 12)
    for name, scores in found.tasks.items():
        for metric, each in scores.metrics.items():
            assert each.value == pytest.approx(
                expected["results"][name][f"{metric},none"], rel=1e-5
            )
        samples = sorted(expected["samples"][name], key=lambda sample: sample["doc_id"])
        if scores.metric == "acc":
            assert list(scores.primary.scores) == [sample["acc"] for sample in samples]
    assert found.tasks["tiny_choices"].metric == "acc"
    assert set(found.tasks["tiny_choices"].metrics) == {"acc", "acc_norm"}
    assert found.tasks["tiny_ending"].metric == "acc"  # perplexity comes first but lower is better
    assert found.tasks["tiny_text"].metric == "word_perplexity"


@_marked
def test_generated_answers_are_scored_by_filter(suite: Path, tmp_path: Path) -> None:
    tiny.write_rows(tmp_path, "ending.jsonl", tiny.ending_rows(6))
    config = {
        **tiny.ENDING,
        "task": "said",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {"name": "small", "filter": [{"function": "lowercase"}, {"function": "take_first"}]},
        ],
    }
    path = tiny.write_task(tmp_path, config)
    found = evaluate(build("llama"), tiny.tokenizer(), str(path)).tasks["said"]
    assert found.metric == "exact_match,whole"
    assert set(found.metrics) == {"exact_match,whole", "exact_match,small"}
    assert len(found.items) == 6


@_marked
def test_two_models_are_compared_item_by_item(suite: Path) -> None:
    tokens = tiny.tokenizer()
    dense, planned = (evaluate(build("llama", seed), tokens, str(suite)) for seed in (0, 1))
    found = compare(dense, planned)
    for name, each in found.items():
        assert each.dense == dense.tasks[name].value
        assert each.planned == planned.tasks[name].value
        assert each.difference == pytest.approx(each.planned - each.dense)
        assert each.interval[0] <= each.difference <= each.interval[1]
        assert set(each.to_dict()) == {
            "metric",
            "dense",
            "planned",
            "difference",
            "interval",
            "items",
        }
    json.dumps({name: each.to_dict() for name, each in found.items()}, allow_nan=False)
    restored = Evaluation.from_dict(json.loads(json.dumps(dense.to_dict())))
    assert restored == dense
    assert compare(restored, planned) == found
    simulated = replace(dense, simulated=True)
    assert Evaluation.from_dict(simulated.to_dict()) == simulated


@_marked
def test_the_way_of_running_does_not_move_scores(suite: Path) -> None:
    model, tokens = build("gemma2"), tiny.tokenizer()
    spec = f"{suite}:tiny_choices,{suite}:tiny_ending"
    packed, plain, phased = (
        evaluate(model, tokens, spec, way=way) for way in ("auto", "plain", "phased")
    )
    assert (packed.way, plain.way, phased.way) == ("packed", "plain", "phased")
    for other in (plain, phased):
        assert compare(packed, other)["tiny_choices"].difference == 0


@_marked
def test_few_shot_examples_follow_the_seed(suite: Path) -> None:
    path = tiny.write_task(suite / "data", tiny.CHOICES, task="shot", num_fewshot=2)
    config = path.read_text().replace("data/choices", "choices")
    path.write_text(config)
    model, tokens = build("llama"), tiny.tokenizer()
    found = [evaluate(model, tokens, str(path), seed=seed).tasks for seed in (0, 0, 1)]
    path.unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize("limit", [0, -3])
def test_limits_below_one_are_refused(limit: int) -> None:
    with pytest.raises(EvaluationError, match=f"limit: {limit}"):
        evaluate(build("llama"), tiny.tokenizer(), "any", limit=limit)


def test_a_model_without_tokenizer_is_refused() -> None:
    with pytest.raises(EvaluationError, match="tokenizer:"):
        evaluate(build("llama"), None, "any")


@_marked
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"gold": "nonsense", "choices": []}, "item 1 .* has no choices"),
        ({"choices": [""]}, r"item 1 \(from 0\): .* no tokens of its own"),
    ],
)
def test_bad_items_are_named(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    rows = tiny.choice_rows(3)
    rows[1] |= changes
    if "gold" in changes:
        for row in rows:
            row["gold"] = str(row["gold"])
    tiny.write_rows(tmp_path, "choices.jsonl", rows)
    path = tiny.write_task(tmp_path, tiny.CHOICES, target_delimiter="")
    with pytest.raises(EvaluationError, match=complaint):
        evaluate(build("llama"), tiny.tokenizer(), str(path))


@_marked
def test_a_task_without_per_item_scores_is_refused(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path, "choices.jsonl", tiny.choice_rows(4))
    metric = {"metric": "f1", "aggregation": "f1", "higher_is_better": True}
    path = tiny.write_task(tmp_path, tiny.CHOICES, metric_list=[metric])
    with pytest.raises(EvaluationError, match="none of its metrics \\(f1\\)"):
        evaluate(build("llama"), tiny.tokenizer(), str(path))


def _scores(name: str, values: list[float], kind: Any = "mean", better: bool = True) -> TaskScores:
    metric = Metric(kind, better, tuple(values), (1.0,) * len(values))
    return TaskScores(name, "acc", {"acc": metric}, tuple(map(str, range(len(values)))))


def _evaluation(*scores: TaskScores) -> Evaluation:
    return Evaluation({each.task: each for each in scores}, None, 0, "packed", 1.0)


def test_comparisons_are_paired() -> None:
    """Flips, not the spread between items, make the interval."""
    before = [1.0, 0.0] * 100
    after = [0.0, 0.0, *before[2:]]
    found = compare(_evaluation(_scores("a", before)), _evaluation(_scores("a", after)))["a"]
    assert found.difference == pytest.approx(-0.005)
    assert found.interval[1] - found.interval[0] < 0.04  # unpaired it would be 0.2
    assert found.p_value == 1.0


def test_perplexities_are_resampled_over_items() -> None:
    before = [-1.0, -2.0, -3.0, -2.5] * 5
    after = [value - 0.5 for value in before]
    found = compare(
        _evaluation(_scores("a", before, "perplexity", False)),
        _evaluation(_scores("a", after, "perplexity", False)),
    )["a"]
    ratio = math.exp(0.5)
    assert found.planned == pytest.approx(ratio * found.dense)
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.p_value is None and not found.higher_is_better
    assert overall({"a": found}) is None


def test_the_overall_mean_has_the_spread_of_all_tasks() -> None:
    one, two = _scores("a", [1.0, 0.0] * 50), _scores("b", [0.25, 0.5, 0.75, 0.5] * 30)
    three = _scores("c", [-1.0] * 10, "perplexity", False)
    after = [
        replace(each, metrics={"acc": replace(each.primary, scores=tuple(changed))})
        for each, changed in (
            (one, [0.0] * 10 + list(one.primary.scores[10:])),
            (two, [0.5] * 60 + list(two.primary.scores[60:])),
            (three, [-2.0] * 10),
        )
    ]
    found = compare(_evaluation(one, two, three), _evaluation(*after))
    mean = overall(found)
    assert mean is not None
    assert mean.items == 220
    assert mean.difference == pytest.approx((found["a"].difference + found["b"].difference) / 2)
    errors = [found[name].standard_error for name in "ab"]
    assert mean.standard_error == pytest.approx(math.hypot(*errors) / 2)
    width = mean.interval[1] - mean.interval[0]
    assert width == pytest.approx(2 * 1.97 * mean.standard_error, rel=0.01)


def test_an_unchanged_model_differs_by_nothing() -> None:
    same = _evaluation(_scores("a", [1.0, 0.0] * 50), _scores("b", [0.5] * 20))
    found = compare(same, same)
    assert found["a"].difference == found["b"].difference == 0
    assert found["a"].interval[0] < 0 < found["a"].interval[1]
    assert found["b"].interval == (0, 0)


def test_different_items_are_not_compared() -> None:
    one = _evaluation(_scores("a", [1.0, 0.0]))
    with pytest.raises(EvaluationError, match=r"task a: .*different items"):
        compare(one, _evaluation(_scores("a", [1.0, 0.0, 1.0])))
    with pytest.raises(EvaluationError, match="scored on a but the planned one on b"):
        compare(one, _evaluation(_scores("b", [1.0, 0.0])))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("seed"),
        lambda data: data.update(skimp_evaluation=99),
        lambda data: data["tasks"]["a"].update(metric="none"),
        lambda data: data["tasks"]["a"]["items"].append("x"),
        lambda data: data["tasks"]["a"]["metrics"]["acc"].update(kind="sum"),
        lambda data: data["tasks"]["a"]["metrics"]["acc"].update(scores="text"),
        lambda data: data.update(tasks=3),
    ],
)
def test_damaged_saved_evaluations_are_refused(damage: Any) -> None:
    data = json.loads(json.dumps(_evaluation(_scores("a", [1.0, 0.0])).to_dict()))
    assert Evaluation.from_dict(data)
    damage(data)
    with pytest.raises(EvaluationError, match="saved evaluation"):
        Evaluation.from_dict(data)
