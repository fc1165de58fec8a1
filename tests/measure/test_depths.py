"""Depths worked out in one pass are those at which the engine's tokens leave."""

from typing import Any

import pytest
import torch
from tests.families import build
from tests.measure.test_simulated import LONGEST, of_logits, requests, scores
from torch import Tensor

import skimp
from skimp.engine import Engine
from skimp.errors import EvaluationError
from skimp.measure.depths import Leaving, Left
from skimp.measure.scorer import Scorer, Way
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

# Plain, with scaled embeddings and capped logits, stored the other way round, parallel, and with
# all tokens of the FF in one row.
FAMILIES = ["llama", "gemma2", "gpt2", "falcon-7b", "opt"]
NEVER = float("inf")
PROMPT = [5, 9, 33, 60, 2, 71]


def exits(model: Any, bar: float, sections: dict[str, Any] | None = None, **fields: Any) -> Plan:
    """The published threshold rule, which needs no fit."""
    section = {"probe": [0, 1], "rule": "threshold", "translator": "plain", "threshold": bar}
    plan = Plan.empty(Anatomy.of(model)).with_section("exit", {**section, **fields})
    for name, other in (sections or {}).items():
        plan = plan.with_section(name, other)
    return plan


def translators(model: Any) -> dict[str, Tensor]:
    size, made = model.config.hidden_size, torch.Generator().manual_seed(3)
    found = {}
    for layer in (0, 1):
        found[f"exit.translator.{layer}.weight"] = torch.eye(size) + 0.2 * torch.randn(
            size, size, generator=made
        )
        found[f"exit.translator.{layer}.bias"] = torch.randn(size, generator=made)
    return found


@torch.inference_mode()
def one_pass(model: Any, plan: Plan, ids: list[int]) -> tuple[Left, Leaving]:
    with skimp.apply(model, plan):
        leaving = Leaving(model, plan)
        with leaving.watching(torch.arange(len(ids))) as states:
            logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        return leaving.leave(states, logits), leaving


def middling(model: Any, plan: Plan, ids: list[int]) -> float:
    """A bar that about half of the probes reach, and none nearly."""
    with skimp.apply(model, plan):
        leaving = Leaving(model, plan)
        with leaving.watching(torch.arange(len(ids))) as states, torch.inference_mode():
            model(torch.tensor([ids]), use_cache=False)
        values = (
            torch.cat(
                [
                    leaving.probes.look(i, states[p], leaving.probes.begin(1)).score
                    for p, i in leaving.looks.items()
                ]
            )
            .sort()
            .values
        )
    middle = values[len(values) // 4 : -len(values) // 4]
    gap = int(middle.diff().argmax())
    return float(middle[gap : gap + 2].mean())


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "translated": {"translator": "full"},
    "candidates": {"candidates": 7},
    "dropped": {"sections": {"drop": {"layers": [1]}}},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_depths_are_the_engines(family: str, case: str) -> None:
    model: Any = build(family)
    fields = CASES[case]
    text = [
        *PROMPT,
        *torch.randint(3, 90, (30,), generator=torch.Generator().manual_seed(1)).tolist(),
    ]
    values = translators(model) if fields.get("translator") == "full" else {}
    never = exits(model, NEVER, **fields).with_values(values)
    plan = exits(model, middling(model, never, text), **fields).with_values(values)
    engine = Engine(model, plan)
    logits, state = engine.prefill([PROMPT], 30)
    ids, tokens, depths = list(PROMPT), [], []
    # Prefill is in full; from the prompt's last token on the engine gives the rest.
    token = int(logits.argmax())
    emitted = []
    for _ in range(24):
        ids.append(token)
        token = int(engine.decode(state, torch.tensor([token])).argmax())
        tokens.append(token)
        assert state.exits is not None
        depths.append(state.exits.depths[0])
        emitted.append(token)
    left, leaving = one_pass(model, plan, ids)
    assert left.depths[len(PROMPT) :].tolist() == depths
    assert left.tokens[len(PROMPT) :].tolist() == tokens
    assert leaving.layers == len(engine.anatomy.layers)
    assert len(set(left.depths.tolist())) > 1, "all leave at one depth"


def test_logits_are_the_full_heads_where_a_token_left() -> None:
    model: Any = build("llama")
    text = requests(1)[0][0] + PROMPT
    whole = exits(model, -1.0)  # every token leaves at the first probe
    few = exits(model, -1.0, candidates=5)
    wide, narrow = one_pass(model, whole, text)[0], one_pass(model, few, text)[0]
    assert set(wide.depths.tolist()) == {1}
    assert torch.equal(wide.logits, narrow.logits) and wide.logits.isfinite().all()
    assert torch.equal(wide.tokens, wide.logits.argmax(-1))


@pytest.mark.parametrize("decide", ("token", "input"))
def test_a_bar_never_reached_is_the_dense_model(decide: Any) -> None:
    model: Any = build("llama")
    asked = requests()
    dense = scores(model, asked)
    plan = exits(model, NEVER)
    with skimp.apply(model, plan):
        found = Scorer(
            model, max_length=LONGEST, batch_tokens=150, leaving=Leaving(model, plan, decide=decide)
        ).score(asked)
    assert [each[:2] for each in found] == [each[:2] for each in dense]
    layers = len(Anatomy.of(model).layers)
    assert all(set(each.depths) == {layers} for each in found)
    assert [len(each.depths) for each in found] == [len(answer) for _, answer in asked]


@pytest.mark.parametrize("family", ["llama", "falcon-alibi", "opt"])
@pytest.mark.parametrize("way", ("auto", "plain"))
def test_scores_are_what_the_engine_decodes(family: str, way: Way) -> None:
    """Reading the context without its last token, then decoding along the continuation."""
    model: Any = build(family)
    asked = requests(5)
    bar = middling(model, exits(model, NEVER), asked[0][0] + asked[4][0])
    plan = exits(model, bar)
    engine = Engine(model, plan)
    with skimp.apply(model, plan):
        scorer = Scorer(
            model, max_length=LONGEST, batch_tokens=150, way=way, leaving=Leaving(model, plan)
        )
        found = scorer.score(asked)
    for (context, answer), one in zip(asked, found, strict=True):
        _, state = engine.prefill([context[:-1]], len(answer) + 1)
        steps, depths = [], []
        for token in (context[-1], *answer[:-1]):
            steps.append(engine.decode(state, torch.tensor([token])))
            assert state.exits is not None
            depths.append(state.exits.depths[0])
        assert one.depths == tuple(depths)
        # All tokens are candidates, so the engine's logits are whole.
        assert one.logprob == pytest.approx(of_logits(torch.cat(steps), answer), abs=2e-4)
    assert len({depth for one in found for depth in one.depths}) > 1


def test_one_decision_an_input_is_its_first_tokens() -> None:
    model: Any = build("llama")
    asked = requests()
    plan = exits(model, middling(model, exits(model, NEVER), asked[0][0] + asked[4][0]))
    with skimp.apply(model, plan):
        each = Scorer(model, max_length=LONGEST, leaving=Leaving(model, plan)).score(asked)
        alone = Scorer(model, max_length=LONGEST, leaving=Leaving(model, plan, decide="input"))
        once = alone.score(asked)
    assert [one.depths[0] for one in each] == [one.depths[0] for one in once]
    assert all(len(set(one.depths)) == 1 for one in once)
    assert any(len(set(one.depths)) > 1 for one in each)


def test_what_one_pass_cannot_tell_is_refused() -> None:
    model: Any = build("llama")
    with pytest.raises(EvaluationError, match=r"exit\.kv: propagate .* kv: exact"):
        Leaving(model, exits(model, 0.5, kv="propagate"))
    with pytest.raises(EvaluationError, match="exit: the plan has none"):
        Leaving(model, Plan.empty(Anatomy.of(model)))
    plan = exits(model, 0.5)
    scorer = Scorer(model, max_length=LONGEST, way="phased", leaving=Leaving(model, plan))
    with pytest.raises(EvaluationError, match="way: early exits"):
        scorer.score(requests(1))
