"""Depths of tasks, item by item, and in evaluations that are saved."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.families import build
from tests.measure import tiny
from tests.measure.test_depths import NEVER, exits
from tests.measure.test_quality import _marked, _own_cache, suite  # noqa: F401

import skimp
from skimp.errors import EvaluationError
from skimp.measure.depths import Leaving
from skimp.measure.quality import Evaluation, compare, evaluate
from skimp.measure.task_depths import TaskDepths


def test_items_count_alike_however_many_tokens_they_have() -> None:
    found = TaskDepths.of(4, [[4, 4, 4, 2], [1]])
    assert found.counts == (0, 1, 1, 0, 3) and found.tokens == 5
    assert found.items == pytest.approx((0.125, 0.75))
    assert found.left_out == pytest.approx(0.4375) and found.exits == pytest.approx(0.4)
    assert found.to_dict()["depths"] == {"1": 0.2, "2": 0.2, "4": 0.6}


def test_what_left_the_last_layer_has_left_none_out() -> None:
    found = TaskDepths.of(3, [[3, 3]])
    assert (found.left_out, found.exits) == (0.0, 0.0)


@_marked
def test_every_kind_of_score_has_its_depths(suite: Path) -> None:  # noqa: F811
    """Choices, endings, and texts whose windows are scored one by one."""
    model: Any = build("llama")
    tokens = tiny.tokenizer()
    dense = evaluate(model, tokens, str(suite), limit=5)
    never, first = exits(model, NEVER), exits(model, -1.0)
    with skimp.apply(model, never):
        same = evaluate(model, tokens, str(suite), limit=5, leaving=Leaving(model, never))
    assert {name: each.difference for name, each in compare(dense, same).items()} == dict.fromkeys(
        dense.tasks, 0.0
    )
    with skimp.apply(model, first):
        found = evaluate(model, tokens, str(suite), limit=5, leaving=Leaving(model, first))
    layers = model.config.num_hidden_layers
    assert found.depths.keys() == found.tasks.keys() and not dense.depths
    for name, each in found.depths.items():
        assert len(each.items) == len(found.tasks[name].items) == 5
        assert each.counts[1] == each.tokens > 0
        assert each.left_out == pytest.approx(1 - 1 / layers)
        assert same.depths[name].left_out == 0 and same.depths[name].tokens == each.tokens
    data = json.loads(json.dumps(found.to_dict()))
    assert Evaluation.from_dict(data) == found
    data["depths"]["tiny_text"]["counts"].append(1)
    with pytest.raises(EvaluationError, match="saved evaluation"):
        Evaluation.from_dict(data)
