"""Simulated generation: one pass over packed items gives what decoding each of them gives."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.runs import make_batch
from tests.contract.thinning import thinned
from tests.families import SAMPLES, VOCABULARY, build
from tests.measure.test_packing import tokens
from torch import Tensor

import skimp
from skimp.engine import Engine
from skimp.errors import EvaluationError
from skimp.measure.packing import Scored, chain_rows, packed_rows
from skimp.measure.scorer import Likelihood, Scorer, Way
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

Request = tuple[list[int], list[int]]
# Gated, plain with biases (all tokens in one row), gate and up in one matrix, stored the other way
# round, windowed, parallel to attention, and one that takes no tree masks.
FAMILIES = ["llama", "opt", "phi3", "gpt2", "mistral", "gpt_neox", "falcon-alibi"]
LONGEST = 40


def requests(count: int = 8, shortest: int = 2) -> list[Request]:
    """Choices of one token and more, contexts that begin alike, some with a few-shot part."""
    generator = random.Random(1)

    def some(low: int, high: int) -> list[int]:
        return [generator.randrange(VOCABULARY) for _ in range(generator.randint(low, high))]

    found: list[Request] = []
    shots = some(6, 6)
    for number in range(count):
        context = (shots if number % 2 else []) + some(shortest, 12)
        stem = some(0, 2)
        found += [(context, stem + some(1, 4)) for _ in range(generator.randint(1, 3))]
        # The same tokens, parted elsewhere: what one thins another takes its statistic from.
        found += [(context + stem + some(1, 1), some(1, 3)), (context, stem + some(2, 2))]
        found += [((context + stem)[:cut], [*(context + stem)[cut:], 3]) for cut in (2, -1)]
    return [(context, answer) for context, answer in found if len(context) >= shortest]


def planned(model: Any, **section: Any) -> Plan:
    plan = Plan.empty(Anatomy.of(model)).with_section("experts", section)
    if not section.get("prior"):
        return plan
    layers, width = model.config.num_hidden_layers, model.config.intermediate_size
    made = torch.Generator().manual_seed(7)
    values = {f"experts.ffn.{n}.prior": torch.rand(width, generator=made) for n in range(layers)}
    return plan.with_values(values)


def scores(model: Any, wanted: list[Request], way: Way = "auto") -> list[Likelihood]:
    return Scorer(model, max_length=LONGEST, batch_tokens=150, way=way).score(wanted)


def of_logits(logits: Tensor, answer: list[int]) -> float:
    target = torch.tensor(answer)
    return logits.double().log_softmax(-1)[torch.arange(len(answer)), target].sum().item()


@torch.inference_mode()
def decoded(engine: Engine, request: Request) -> float:
    """Of an engine that reads the context without its last token, then decodes."""
    context, answer = request
    _, state = engine.prefill([context[:-1]], len(answer) + 1)
    steps = [engine.decode(state, torch.tensor([t])) for t in (context[-1], *answer[:-1])]
    return of_logits(torch.cat(steps), answer)


def agree(found: list[Likelihood], wanted: list[float]) -> None:
    assert [each.logprob for each in found] == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_is_the_reference_by_hooks(family: str) -> None:
    sample, model = SAMPLES[family], build(family)
    asked = requests()
    wanted = []
    for context, answer in asked:
        ids = [*context, *answer[:-1]]
        batch = replace(make_batch([len(ids)]), ids=torch.tensor([ids]))
        logits, _ = thinned(sample, model, batch, len(context) - 1, 0.5)
        wanted.append(of_logits(logits[1:], answer))
    dense = [each.logprob for each in scores(model, asked)]
    assert max(abs(a - b) for a, b in zip(dense, wanted, strict=True)) > 0.1
    with skimp.apply(model, planned(model, keep=0.5)):
        scorer = Scorer(model, max_length=LONGEST, batch_tokens=150)
        agree(scorer.score(asked), wanted)
        assert scorer.simulated
        assert scorer.taken == ("plain" if family == "falcon-alibi" else "packed")
        agree(scores(model, asked, "plain"), wanted)
    assert [each.logprob for each in scores(model, asked)] == dense


SECTIONS: dict[str, dict[str, Any]] = {
    "by layer": {"keep": [0.25, 1.0, 0.5, 0.75]},
    "blocks": {"keep": 0.5, "block": 16},
    "sample": {"keep": 0.5, "select": "sample", "seed": 3},
    "both": {"keep": 0.5, "select": "topk_sample"},
    "random": {"keep": 0.5, "select": "random"},
    "magnitude": {"keep": 0.5, "select": "magnitude"},
    "prior": {"keep": 0.5, "prior": 0.5},
    "prior alone": {"keep": 0.3, "prior": 1.0},
    "shared": {"keep": 0.5, "batch": "shared"},
    "means": {"keep": 0.5, "fill": "mean"},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_rule_gives_what_the_engine_decodes(name: str) -> None:
    model: Any = build("llama")
    section = dict(SECTIONS[name])
    if isinstance(section["keep"], list):
        section["keep"] = (section["keep"] * 2)[: model.config.num_hidden_layers]
    plan = planned(model, **section)
    asked = requests(4)
    engine = Engine(model, plan)
    wanted = [decoded(engine, request) for request in asked]
    with skimp.apply(model, plan):
        agree(scores(model, asked), wanted)
        agree(scores(model, asked, "plain"), wanted)


def test_refreshes_are_passed_over() -> None:
    model = build("llama")
    asked = requests(3)
    with skimp.apply(model, planned(model, keep=0.5)):
        wanted = scores(model, asked)
    with skimp.apply(model, planned(model, keep=0.5, refresh=1)):
        assert scores(model, asked) == wanted


def test_what_stands_in_the_same_batch_does_not_matter() -> None:
    model = build("llama")
    asked = requests(6)
    with skimp.apply(model, planned(model, keep=0.5)):
        alone = [scores(model, [request])[0].logprob for request in asked]
        agree(scores(model, asked), alone)


def test_all_kept_is_the_dense_model_bit_by_bit() -> None:
    model = build("llama")
    asked = requests(4)
    dense = scores(model, asked)
    with skimp.apply(model, planned(model, keep=1.0)):
        scorer = Scorer(model, max_length=LONGEST, batch_tokens=150)
        assert scorer.score(asked) == dense
        assert not scorer.simulated


@pytest.mark.parametrize("select", ["topk", "random"])
def test_a_context_of_one_token_has_no_statistic(select: str) -> None:
    """All neurons stay, unless the rule looks at no prompt."""
    model = build("llama")
    asked: list[Request] = [([5], [6]), ([5], [7, 8]), ([9], [7, 8, 9])]
    dense = [each.logprob for each in scores(model, asked)]
    with skimp.apply(model, planned(model, keep=0.5, select=select)):
        found = scores(model, asked, "packed")
        agree(scores(model, asked, "plain"), [each.logprob for each in found])
    difference = max(abs(a.logprob - b) for a, b in zip(found, dense, strict=True))
    assert difference < 1e-4 if select == "topk" else difference > 0.05


def test_contexts_that_lose_their_beginning_take_their_statistic_from_the_rest() -> None:
    model = build("llama")
    context, answer = list(range(60)), [3, 4, 5]
    with skimp.apply(model, planned(model, keep=0.5)):
        cut = scores(model, [(context[-(LONGEST + 1 - len(answer)) :], answer)])
        assert scores(model, [(context, answer)]) == cut


def test_half_precision_chooses_and_is_close() -> None:
    asked = requests(4)
    exact: Any = build("llama")
    with skimp.apply(exact, planned(exact, keep=0.5)):
        wanted = [each.logprob for each in scores(exact, asked)]
    model = build("llama", dtype=torch.bfloat16)
    with skimp.apply(model, planned(model, keep=0.5)):
        found = [each.logprob for each in scores(model, asked)]
    assert found == pytest.approx(wanted, abs=2, rel=0.1)


def test_phased_is_refused_for_prompt_chosen_experts() -> None:
    model = build("llama")
    with (
        skimp.apply(model, planned(model, keep=0.5)),
        pytest.raises(EvaluationError, match="way: experts"),
    ):
        scores(model, [([1, 2], [3])], "phased")


@st.composite
def parted(draw: Any) -> list[Scored]:
    whole = draw(st.lists(tokens, min_size=1, max_size=12))
    cuts = [draw(st.integers(1, len(sequence))) for sequence in whole]
    return [
        Scored(n, sequence, tuple(range(cut)), apart=True)
        for n, (sequence, cut) in enumerate(zip(whole, cuts, strict=True))
    ]


@given(parted(), st.integers(1, 20))
def test_scored_entries_belong_to_one_context(sequences: list[Scored], row_tokens: int) -> None:
    for row in [*packed_rows(sequences, row_tokens), *chain_rows(sequences)]:
        contexts: dict[int, set[tuple[int, ...]]] = {}
        read: set[int] = set()
        for sequence, entries in row.wanted:
            line = row.line(entries[-1])[::-1]
            assert tuple(row.tokens[entry] for entry in line) == sequence.tokens
            context = sequence.tokens[: -len(entries)]
            read.update(line[: len(context)])
            for entry in entries:
                contexts.setdefault(entry, set()).add(context)
        assert all(len(found) == 1 for found in contexts.values())
        assert not read & contexts.keys()
