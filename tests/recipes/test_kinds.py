"""Each kind of experiment on a tiny random model, against the same figures worked out here."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.families import SAMPLES
from tests.recipes.kit import EXPERIMENTS, TASK, TASKS, recipe, stage
from tests.tiny import byte_tokenizer

import skimp
from skimp.errors import EvaluationError, RecipeError
from skimp.measure.quality import compare, evaluate, overall
from skimp.measure.shelf import Shelf
from skimp.recipes.outcome import Outcome
from skimp.recipes.run import Result, check, jobs, run


def results(folder: Path, name: str, **changes: Any) -> Result:
    made = TASKS if name == "choices" else EXPERIMENTS[name]
    found = recipe(folder, {**made, **changes})
    ground, shelf = stage(found), Shelf(folder / "state", Outcome.from_dict)
    (result,) = run(jobs(found, ground, shelf), ground, shelf)
    return result


def test_summaries_are_scored_against_their_references(tmp_path: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    result = results(tmp_path, "summaries")
    assert result.job.prepared.skipped == 1
    assert list(result.outcomes) == ["dense", "half", "no-attention"]
    model, tokenizer = SAMPLES["llama"].build(), byte_tokenizer()
    engine = skimp.Engine(model)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for number, item in enumerate(result.job.prepared.asked.found):  # type: ignore[attr-defined]
        (answer,) = engine.generate([item.prompt], 5, tokenizer=tokenizer)
        told = result.outcomes["dense"].details["answers"][number]
        assert (told["line"], told["text"]) == (item.number, (answer.text or "").strip())
        score = scorer.score(item.reference, told["text"])["rougeL"].fmeasure
        assert result.outcomes["dense"].metrics["rougeL"].scores[number] == score
    assert result.outcomes["half"].details != result.outcomes["dense"].details
    cell = result.cells["half"]["rouge1"]
    assert cell.difference == pytest.approx(cell.value - (cell.dense or 0))
    assert cell.interval is not None and cell.interval[0] <= cell.difference <= cell.interval[1]


def test_what_is_written_stops_at_a_stop_string(tmp_path: Path) -> None:
    found = results(tmp_path, "summaries", new_tokens=12).outcomes["dense"].details["answers"]
    letter = next(char for char in found[0]["text"] if char.isalnum())
    stopped = results(tmp_path, "summaries", new_tokens=12, stop=[letter])
    texts = [answer["text"] for answer in stopped.outcomes["dense"].details["answers"]]
    assert texts[0] == found[0]["text"].split(letter)[0].strip()


def test_drawn_answers_are_the_same_each_time(tmp_path: Path) -> None:
    texts = [
        results(tmp_path / name, "summaries", temperature=1.0).outcomes["half"].details
        for name in ("a", "b")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["foreseen", "text"])
def test_perplexity_is_that_of_one_pass_over_the_text(tmp_path: Path, name: str) -> None:
    result = results(tmp_path, name)
    model = SAMPLES["llama"].build()
    total, count = 0.0, 0
    for item in result.job.prepared.asked.found:  # type: ignore[attr-defined]
        ids = torch.tensor([item.prompt + item.answer])
        with torch.inference_mode():
            logits = model(ids).logits[0].log_softmax(-1)
        for place in range(len(item.prompt) + 1, ids.shape[1]):
            total -= float(logits[place - 1, ids[0, place]])
            count += 1
    expected = torch.tensor(total / count).exp()
    assert result.cells["dense"]["perplexity"].value == pytest.approx(float(expected), rel=1e-4)
    dense, half = (result.outcomes[p].metrics["perplexity"].scores for p in ("dense", "half"))
    assert half != pytest.approx(dense, rel=1e-3)
    assert not result.cells["half"]["perplexity"].share


def test_fidelity_stands_beside_dense_by_itself(tmp_path: Path) -> None:
    from skimp.measure.answers import on_own_answers

    result = results(tmp_path, "followed")
    assert list(result.outcomes) == ["half", "no-attention"]
    found = recipe(tmp_path, EXPERIMENTS["followed"])
    ground = stage(found)
    prompts = [item.prompt for item in result.job.prepared.asked.found]  # type: ignore[attr-defined]
    expected = on_own_answers(ground.engine("dense"), {"half": ground.engine("half")}, prompts, 6)[
        "half"
    ]
    cells = result.cells["half"]
    assert cells["kl"].value == expected.kl > 0
    assert cells["top1_agreement"].value == expected.top1_agreement
    assert cells["perplexity_ratio"].value == pytest.approx(
        expected.perplexity_planned / expected.perplexity_dense
    )
    assert cells["kl"].difference is None


def test_keeping_everything_changes_nothing(tmp_path: Path) -> None:
    found = recipe(tmp_path, *EXPERIMENTS.values(), plans={"half": {"experts": {"keep": 1.0}}})
    ground, shelf = stage(found), Shelf(tmp_path / "state", Outcome.from_dict)
    for result in run(jobs(found, ground, shelf), ground, shelf):
        for name, cell in result.cells["half"].items():
            if cell.difference is None:
                assert cell.value == {"kl": 0, "top1_agreement": 1, "perplexity_ratio": 1}[name]
            else:
                assert cell.difference == 0


@pytest.mark.eval
def test_tasks_are_paired_with_dense_and_their_mean_too(tmp_path: Path) -> None:
    result = results(tmp_path, "choices")
    assert result.job.prepared.items == 10
    model, tokenizer = SAMPLES["llama"].build(), byte_tokenizer()
    specs = f"{tmp_path / 'data' / 'tasks'}"
    before = evaluate(model, tokenizer, specs, limit=5)
    plan = stage(recipe(tmp_path, TASKS)).fitted("no-attention")
    with skimp.apply(model, plan):
        after = evaluate(model, tokenizer, specs, limit=5)
    pairs = compare(before, after)
    cells = result.cells["no-attention"]
    assert list(cells) == ["tiny_choice", "tiny_other", "mean"]
    for name, pair in pairs.items():
        cell = cells[name]
        assert (cell.dense, cell.value, cell.interval) == (pair.dense, pair.planned, pair.interval)
        assert cell.share
    simulated = {plan: outcome.details["simulated"] for plan, outcome in result.outcomes.items()}
    assert simulated == {"dense": False, "half": True, "no-attention": False}
    mean = overall(pairs)
    assert mean is not None
    assert (cells["mean"].value, cells["mean"].interval) == (mean.planned, mean.interval)
    assert "mean" in result.cells["dense"]


def test_a_missing_rouge_score_is_named_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recipe(tmp_path, EXPERIMENTS["summaries"])
    check(found)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(RecipeError, match=r"skimp\[eval\]"):
        check(found)


def test_summaries_need_references(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"experiments\.summaries\.file"):
        check(recipe(tmp_path, {**EXPERIMENTS["summaries"], "file": "text.txt"}))


@pytest.mark.eval
def test_experts_are_refused_where_they_cannot_be_simulated(tmp_path: Path) -> None:
    found = recipe(tmp_path, {**TASKS, "tasks": ["tiny_choice"]})
    task = tmp_path / "data" / "tasks" / "tiny_choice.yaml"
    generating = {**TASK, "output_type": "generate_until", "doc_to_target": "{{choices[0]}}"}
    del generating["doc_to_choice"]
    generating["metric_list"] = [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    ]
    task.write_text(yaml.safe_dump(generating))
    with pytest.raises(EvaluationError, match="simulated"):
        jobs(found, stage(found), Shelf(tmp_path / "state", Outcome.from_dict))
