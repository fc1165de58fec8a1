"""Predictions while decoding: an independent loop over full passes gives the same figures."""

import pytest
from tests.contract.runs import make_batch
from tests.contract.test_experts import planned
from tests.contract.thinning import thinned
from tests.families import SAMPLES

from skimp.engine import Engine
from skimp.measure.answers import on_answers, on_own_answers


def test_figures_equal_a_loop_without_cache() -> None:
    sample = SAMPLES["llama"]
    model = sample.build()
    batch = make_batch([14], seed=2)
    prompt, answer = batch.ids[0, :8].tolist(), batch.ids[0, 8:].tolist()
    engines = {"half": Engine(model, planned(model, experts={"keep": 0.5})), "same": Engine(model)}
    found = on_answers(Engine(model), engines, [(prompt, answer)])
    p, q = (thinned(sample, model, batch, 8, keep)[0][1:-1].log_softmax(-1) for keep in (1.0, 0.5))
    assert found["half"].kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    agree = (p.argmax(-1) == q.argmax(-1)).float().mean()
    assert found["half"].top1_agreement == pytest.approx(float(agree))
    assert found["half"].tokens == len(answer) - 1
    assert found["same"].kl == 0 and found["same"].top1_agreement == 1


def test_own_answers_are_greedy() -> None:
    model = SAMPLES["llama"].build()
    dense = Engine(model)
    prompts = make_batch([9, 9], seed=3).ids.tolist()
    answers = [dense.generate([prompt], 6)[0].tokens for prompt in prompts]
    pairs = [(p, a) for p, a in zip(prompts, answers, strict=True) if len(a) > 1]
    engines = {"half": Engine(model, planned(model, experts={"keep": 0.5}))}
    assert on_own_answers(dense, engines, prompts, 6) == on_answers(dense, engines, pairs)
