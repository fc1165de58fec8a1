"""Exits along text and in free running, against the plain way to work them out."""

import math
from typing import Any

import pytest
import torch
from tests.families import VOCABULARY, build
from tests.measure.test_depths import NEVER, exits, middling, translators

import skimp
from skimp.engine import Engine
from skimp.errors import EvaluationError
from skimp.measure.depths import Leaving
from skimp.measure.divergence import diverge
from skimp.measure.exit_text import along_text
from skimp.measure.fidelity import fidelity
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan


def documents() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in (19, 12, 23, 23)]


def middle(model: Any, **fields: Any) -> Plan:
    values = translators(model) if fields.get("translator") == "full" else {}
    never = exits(model, NEVER, **fields).with_values(values)
    bar = middling(model, never, documents()[2].tolist())
    return exits(model, bar, **fields).with_values(values)


@pytest.mark.parametrize("batch_tokens", (30, 500))
def test_figures_are_those_of_documents_one_by_one(batch_tokens: int) -> None:
    model: Any = build("llama")
    plan = middle(model, translator="full", sections={"drop": {"ffn": [2]}})
    found = along_text(model, plan, documents(), batch_tokens=batch_tokens)
    depths, same, agree, before, after = [], [], [], [], []
    for document in documents():
        with torch.no_grad():
            dense = model(document[None], use_cache=False).logits[0, :-1]
        with skimp.apply(model, plan):
            leaving = Leaving(model, plan)
            with leaving.watching(torch.arange(len(document) - 1)) as states, torch.no_grad():
                full = model(document[None], use_cache=False).logits[0, :-1]
            left = leaving.leave(states, full)
        depths += left.depths.tolist()
        same += (left.tokens == full.argmax(-1)).tolist()
        agree += (left.tokens == dense.argmax(-1)).tolist()
        true = document[1:, None]
        before += (-dense.log_softmax(-1).gather(-1, true)).flatten().tolist()
        after += (-left.logits.log_softmax(-1).gather(-1, true)).flatten().tolist()
    layers, count = found.layers, len(depths)
    assert found.tokens == count == found.fidelity.tokens
    assert found.left_out == pytest.approx(1 - sum(depths) / count / layers)
    assert found.exits == pytest.approx(sum(depth < layers for depth in depths) / count)
    assert found.agreement == pytest.approx(sum(same) / count)
    assert found.fidelity.top1_agreement == pytest.approx(sum(agree) / count)
    assert found.fidelity.loss_dense == pytest.approx(sum(before) / count, abs=1e-4)
    assert found.fidelity.loss_planned == pytest.approx(sum(after) / count, abs=1e-4)
    assert math.isnan(found.fidelity.kl) and found.fidelity.to_dict()["kl"] is None
    assert found.sample is not None
    assert found.sample.depths == tuple(depths[:18])
    assert found.sample.agree == tuple(same[:18])
    assert found.sample.tokens == tuple(documents()[0][1:].tolist())
    assert 0 < found.exits < 1 and found.agreement < 1


def test_the_lens_is_read_after_every_layer() -> None:
    model: Any = build("gpt2")
    found = along_text(model, middle(model, translator="full"), documents())
    lens = {each.depth: each for each in found.lens}
    assert list(lens) == list(range(1, found.layers + 1))
    assert lens[found.layers].plain == 1.0 and lens[found.layers].translated is None
    assert all(lens[place].translated is not None for place in (1, 2))
    plain = along_text(model, exits(model, NEVER), documents())
    assert all(each.translated is None for each in plain.lens)


def test_a_bar_never_reached_is_the_dense_model() -> None:
    model: Any = build("opt")
    found = along_text(model, exits(model, NEVER), documents())
    dense = fidelity(model, lambda: skimp.apply(model, Plan.empty(Anatomy.of(model))), documents())
    assert (found.left_out, found.exits, found.agreement) == (0.0, 0.0, 1.0)
    assert found.fidelity.perplexity_planned == found.fidelity.perplexity_dense
    assert found.fidelity.perplexity_dense == pytest.approx(dense.perplexity_dense, rel=1e-6)
    data = found.to_dict(Words())
    assert data["depths"] == {str(found.layers): 1.0} == data["agreement_by_depth"]
    assert len(data["sample"]["tokens"]) == len(data["sample"]["depths"]) == 18


class Words:
    def decode(self, ids: list[int]) -> str:
        return f"w{ids[0]}"


def test_what_cannot_be_measured_is_refused() -> None:
    model: Any = build("llama")
    with pytest.raises(EvaluationError, match="documents: none has two tokens"):
        along_text(model, exits(model, 0.5), [torch.tensor([3])])
    with pytest.raises(EvaluationError, match=r"exit\.kv: propagate"):
        along_text(model, exits(model, 0.5, kv="propagate"), documents())
    both = exits(model, 0.5, {"experts": {"keep": 0.5}})
    with pytest.raises(EvaluationError, match="exit: text is read in one pass"):
        along_text(model, both, documents())


def test_answers_are_compared_token_by_token() -> None:
    model: Any = build("llama")
    plan = middle(model)
    dense, planned = Engine(model), Engine(model, plan)
    prompts = [document[:8].tolist() for document in documents()]
    found = diverge(dense, planned, prompts, 12)
    rows = []
    for prompt in prompts:
        one, other = (engine.generate([prompt], 12)[0].tokens for engine in (dense, planned))
        rows.append([a == b for a, b in zip(one, other, strict=True)])
    assert found.by_position == pytest.approx(tuple(sum(c) / 4 for c in zip(*rows, strict=True)))
    firsts = [row.index(False) if False in row else 12 for row in rows]
    assert found.until_first == pytest.approx(sum(firsts) / 48)
    assert found.same == sum(map(all, rows)) / 4
    assert 0 < found.left_out < 1
    assert found.by_position[0] == 1.0, "the prompt alone makes the first token"
    never = diverge(dense, Engine(model, exits(model, NEVER)), prompts, 12)
    assert (never.until_first, never.same, never.agreement, never.left_out) == (1, 1, 1, 0)
    with pytest.raises(EvaluationError, match="prompts: "):
        diverge(dense, planned, [], 12)
