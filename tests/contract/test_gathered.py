"""The laws on experts whose weights torch reads from copies: what is read in place, to rounding."""

import math

import pytest
import torch
from tests.contract.runs import assert_close, make_batch
from tests.contract.test_engine import CUT, PLAIN, prompts, served
from tests.contract.test_experts import BATCH, SINGLE, planned, thin
from tests.contract.thinning import thinned
from tests.families import WINDOW, Sample
from torch import Tensor, nn

from skimp.engine import Engine
from skimp.engine.compiled import CompiledRunner
from skimp.engine.runners import SlotRunner
from skimp.engine.ways import Asked
from skimp.plan import Plan

__all__ = ["thin"]


def eager(model: nn.Module, plan: Plan, experts: Asked = "gathered") -> Engine:
    return Engine(model, plan, decode="eager", experts=experts)


def compiled(model: nn.Module, plan: Plan, experts: Asked = "gathered") -> Engine:
    engine = eager(model, plan, experts)
    assert isinstance(engine.runner, SlotRunner)
    engine.runner = CompiledRunner(engine.model, engine.runner.shapes, backend="eager")
    return engine


def read(engine: Engine, batch: int) -> str:
    way = engine.experts_way(batch)
    assert way is not None
    return way.name


def test_all_kept_is_the_dense_model(model: nn.Module, sample: Sample) -> None:
    """Law 1, bit by bit."""
    whole = eager(model, planned(model, experts={"keep": 1.0}))
    assert torch.equal(served(whole, BATCH, CUT), served(Engine(model, decode="eager"), BATCH, CUT))
    assert whole.experts_way(len(BATCH.ids)) is None


@pytest.mark.parametrize(("refresh", "fill"), [(0, "zero"), (2, "mean")])
def test_copies_answer_as_the_rows_do(
    model: nn.Module, thin: Sample, refresh: int, fill: str
) -> None:
    """Laws 2 and 3: beside the dense model with neurons masked, and padded beside in place."""
    section = {"keep": 0.5, "refresh": refresh, "fill": fill}
    engine = eager(model, planned(model, experts=section))
    windows = [layer.attention.window or math.inf for layer in engine.anatomy.layers]
    remembers = 0 if thin.name in PLAIN else min(windows)
    alone, _ = thinned(thin, model, SINGLE, 1, 0.5, refresh, remembers, fill)
    assert_close(served(engine, SINGLE, 1), alone)
    assert read(engine, 1) == "gathered"
    shared = planned(model, experts={**section, "batch": "shared"})
    engine, other = eager(model, shared), eager(model, shared, "in place")
    assert_close(served(engine, BATCH, CUT), served(other, BATCH, CUT))
    assert (read(engine, 3), read(other, 3)) == ("gathered", "in place")
    assert_close(served(engine, BATCH, CUT, chunk=3), served(other, BATCH, CUT, chunk=3))


def test_sequences_with_experts_of_their_own_are_read_in_place(
    model: nn.Module, thin: Sample
) -> None:
    plan = planned(model, experts={"keep": 0.5})
    engine, other = eager(model, plan), eager(model, plan, "in place")
    assert torch.equal(served(engine, BATCH, CUT), served(other, BATCH, CUT))
    assert engine.experts_way(3) is None


@pytest.mark.parametrize("refresh", (0, 2))
def test_interleaved_requests_share_nothing(model: nn.Module, thin: Sample, refresh: int) -> None:
    """Law 4: one set of buffers serves them in turn, each with its own experts."""
    plan = planned(model, experts={"keep": 0.5, "refresh": refresh})
    rows = prompts(BATCH, CUT + 3)[:2]

    def steps(prompt: list[int]) -> list[Tensor]:
        engine = eager(model, plan)  # with buffers that held nobody's
        logits, state = engine.prefill([prompt], 5)
        return [logits, *(engine.decode(state, torch.tensor([t])) for t in (5, 6, 7, 8))]

    apart = [steps(row) for row in rows]
    engine = eager(model, plan)
    states = [engine.prefill([row], 5) for row in rows]
    together = [[logits] for logits, _ in states]
    for token in (5, 6, 7, 8):
        for found, (_, state) in zip(together, states, strict=True):
            found.append(engine.decode(state, torch.tensor([token])))
    chosen = [state.experts.chosen[1].rows.tolist() for _, state in states]
    assert chosen[0] != chosen[1], "the prompts agree, so nothing was tried"
    for one, other in zip(apart, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_no_prompt_compiles_anew(model: nn.Module, thin: Sample) -> None:
    """One graph serves what every prompt chose, interleaved, of any length."""
    if thin.name in PLAIN:
        pytest.skip(f"{thin.name} runs on transformers' own cache")
    plan = planned(model, experts={"keep": 0.5, "fill": "mean"})
    engine, other = compiled(model, plan), eager(model, plan, "in place")
    assert_close(served(engine, SINGLE, 1), served(other, SINGLE, 1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        both = [engine.prefill([row], 3) for row in ([5] * 9, [9, 4])]
        alike = [other.prefill([row], 3) for row in ([5] * 9, [9, 4])]
        for token in (3, 7):
            for (_, state), (_, beside) in zip(both, alike, strict=True):
                tokens = torch.tensor([token])
                assert_close(engine.decode(state, tokens), other.decode(beside, tokens))
        longer = make_batch([WINDOW + 19], seed=6)
        assert_close(served(engine, longer, 17), served(other, longer, 17))
    assert read(engine, 1) == "gathered"
    torch._dynamo.reset()


# Gated, gate and up in one, and all tokens in one row.
@pytest.mark.parametrize("sample", ("llama", "phi3", "opt"), indirect=True)
@pytest.mark.parametrize(
    ("batch", "experts"), [("sequence", "auto"), ("shared", "in place"), ("shared", "gathered")]
)
def test_no_batch_compiles_anew(model: nn.Module, batch: str, experts: Asked) -> None:
    """Nor do batches, whatever rows their sequences need between them, nor rows read in place."""
    plan = planned(model, experts={"keep": 0.3, "batch": batch, "refresh": 3})
    engine, other = compiled(model, plan, experts), eager(model, plan, "in place")
    assert_close(served(engine, BATCH, CUT), served(other, BATCH, CUT))
    needed = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            longer = make_batch([WINDOW + 19, 20, 16], seed=seed)
            assert_close(served(engine, longer, 17), served(other, longer, 17))
            _, state = other.prefill(prompts(longer, 17), 1)
            other.decode(state, torch.tensor([1, 2, 3]))
            needed.append(len(state.experts.chosen[0].rows))
    if batch == "sequence":
        assert len(set(needed)) > 1, "the batches need as many rows, so nothing was tried"
    torch._dynamo.reset()
