"""The laws on prompt-adaptive experts: chosen by the engine, request by request."""

import math

import pytest
import torch
from tests.contract.cases import ROUTED
from tests.contract.runs import assert_close, make_batch, uncached
from tests.contract.test_engine import CUT, PLAIN, hold, prompts, served
from tests.contract.thinning import neurons_of, thinned
from tests.families import WINDOW, Sample
from torch import Tensor, nn

import skimp
from skimp.calibration.text import Calibration
from skimp.engine import Engine
from skimp.errors import PlanError
from skimp.measure.cost import decode_cost
from skimp.methods.fit import fit_plan
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.workload import Workload

BATCH = make_batch([WINDOW + 6, 9, 5], seed=3)
SINGLE = make_batch([WINDOW + 4], seed=4)

# Gate and up in one matrix are thinned by torch.
FUSED = {"phi3", "glm", "glm4"}


def planned(model: nn.Module, **sections: dict[str, object]) -> Plan:
    plan = Plan.empty(Anatomy.of(model))
    for name, section in sections.items():
        plan = plan.with_section(name, section)
    return plan


@pytest.fixture
def thin(sample: Sample) -> Sample:
    """The families whose FFs can be thinned."""
    if sample.name in ROUTED:
        pytest.skip(f"{sample.name} routes its tokens to experts of its own")
    return sample


def ways(engine: Engine, batch: int, sample: Sample) -> list[str]:
    reason = engine.warm_up(batch)
    assert (reason is not None) == (sample.name in PLAIN | FUSED), reason
    return ["torch"] if reason is not None else ["torch", "native"]


def test_routed_experts_are_refused(model: nn.Module, sample: Sample) -> None:
    plan = planned(model, experts={"keep": 0.5})
    if sample.name in ROUTED:
        with pytest.raises(PlanError, match="experts: the FF of layer"):
            skimp.apply(model, plan)
    else:
        skimp.apply(model, plan).undo()


def test_all_kept_is_the_dense_model(model: nn.Module, sample: Sample) -> None:
    """Law 1, bit by bit."""
    dense, whole = Engine(model), Engine(model, planned(model, experts={"keep": 1.0}))
    assert torch.equal(served(whole, BATCH, CUT), served(dense, BATCH, CUT))


@pytest.mark.parametrize("fill", ("zero", "mean"))
@pytest.mark.parametrize("refresh", (0, 2))
def test_answers_use_the_experts_of_their_prompts(
    model: nn.Module, thin: Sample, refresh: int, fill: str
) -> None:
    """Laws 2 and 3: cached, chunked and padded equal the dense model with neurons masked."""
    section = {"keep": 0.5, "refresh": refresh, "fill": fill}
    engine = Engine(model, planned(model, experts=section))
    windows = [layer.attention.window or math.inf for layer in engine.anatomy.layers]
    remembers = 0 if thin.name in PLAIN else min(windows)
    wanted, _ = thinned(thin, model, BATCH, CUT, 0.5, refresh, remembers, fill)
    alone, _ = thinned(thin, model, SINGLE, 1, 0.5, refresh, remembers, fill)
    dense, _ = thinned(thin, model, BATCH, CUT, 1.0)
    assert (wanted - dense).abs().max() > 1e-3 * dense.abs().max(), "thinning does not show"
    found = [ways(engine, batch, thin) for batch in (3, 1)]
    hold(engine, BATCH, found[0], wanted, SINGLE, found[1], alone)


def test_the_chosen_set_is_the_reference_set(model: nn.Module, thin: Sample) -> None:
    engine = Engine(model, planned(model, experts={"keep": 0.3}))
    _, masks = thinned(thin, model, BATCH, CUT, 0.3)
    logits, state = engine.prefill(prompts(BATCH, CUT), 3)
    engine.decode(state, logits.argmax(-1))
    for layer, mask in enumerate(masks):
        chosen = state.experts.chosen[layer]
        for row in range(len(BATCH.ids)):
            own = chosen.rows if chosen.mask is None else chosen.rows[chosen.mask[row]]
            assert own.tolist() == mask[row, CUT].nonzero().flatten().tolist()


def test_interleaved_requests_share_nothing(model: nn.Module, thin: Sample) -> None:
    """Law 4."""
    engine = Engine(model, planned(model, experts={"keep": 0.5, "refresh": 1}))
    engine.warm_up(1)
    rows = prompts(BATCH, CUT + 3)[:2]

    def steps(prompt: list[int]) -> list[Tensor]:
        logits, state = engine.prefill([prompt], 5)
        return [logits, *(engine.decode(state, torch.tensor([t])) for t in (5, 6, 7, 8))]

    apart = [steps(row) for row in rows]
    states = [engine.prefill([row], 5) for row in rows]
    together = [[logits] for logits, _ in states]
    for token in (5, 6, 7, 8):
        for found, (_, state) in zip(together, states, strict=True):
            found.append(engine.decode(state, torch.tensor([token])))
    for one, other in zip(apart, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_composes_with_drop(model: nn.Module, thin: Sample) -> None:
    """One plan, one engine; what is dropped is gone from costs too."""
    drop = {"attention": [0], "ffn": [1]}
    both = planned(model, experts={"keep": 0.5}, drop=drop)
    engine = Engine(model, both)
    with skimp.apply(model, planned(model, drop=drop)):
        wanted, _ = thinned_planned(thin, model)
    assert_close(served(engine, BATCH, CUT), wanted)
    work = Workload(8, 8, 1)
    only = Engine(model, planned(model, drop=drop)).anatomy
    thin_bytes = decode_cost(engine.anatomy, work).bytes
    ffn = decode_cost(only, work).ffn.bytes
    assert thin_bytes == pytest.approx(decode_cost(only, work).bytes - 0.5 * ffn, rel=0.02)


def thinned_planned(sample: Sample, model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """`thinned` on a model whose layer 1 has no FF any more."""
    kept = [block for index, block in enumerate(sample.blocks(model)) if index != 1]
    view = Blocks(sample, kept)
    return thinned(view, model, BATCH, CUT, 0.5)  # pyright: ignore[reportArgumentType]


class Blocks:
    """A sample that shows some of the blocks only."""

    def __init__(self, sample: Sample, kept: list[nn.Module]) -> None:
        self.ffn = sample.ffn
        self._kept = kept

    def blocks(self, _: nn.Module) -> list[nn.Module]:
        return self._kept


@pytest.mark.parametrize("refresh", (0, 4))
def test_the_anatomy_is_foretold(model: nn.Module, thin: Sample, refresh: int) -> None:
    plan = planned(model, experts={"keep": 0.5, "refresh": refresh}, drop={"ffn": [1]})
    foretold = reduce(plan, Anatomy.of(model))
    assert foretold.refresh == refresh
    found = Engine(model, plan).anatomy
    assert found.refresh == refresh
    shares = [[la.ffn.decode_share for la in each.layers] for each in (foretold, found)]
    assert shares[0] == shares[1]
    work = Workload(8, 8, 1)
    assert decode_cost(foretold, work) == decode_cost(found, work)


def test_undo_restores_the_model(model: nn.Module, thin: Sample) -> None:
    """Law 6; and without an engine nothing is left out."""
    before = uncached(model, BATCH)
    applied = skimp.apply(model, planned(model, experts={"keep": 0.5}))
    assert_close(uncached(model, BATCH), before)
    applied.undo()
    assert torch.equal(uncached(model, BATCH), before)


def test_folders_cannot_hold_what_prompts_choose(
    model: nn.Module, thin: Sample, tmp_path: object
) -> None:
    """Law 5: refused with the reason rather than saved as something else."""
    from skimp.methods.folder import save

    plan = planned(model, experts={"keep": 0.5})
    with skimp.apply(model, plan), pytest.raises(PlanError, match="experts: the engine chooses"):
        save(model, None, plan, f"{tmp_path}/out")


def test_the_prior_is_the_statistic_over_all_of_the_text(model: nn.Module, thin: Sample) -> None:
    random = torch.Generator().manual_seed(5)
    documents = [torch.randint(3, 60, (length,), generator=random) for length in (11, 4, 7)]
    plan = planned(model, experts={"keep": 0.5, "prior": 0.5})
    fitted = fit_plan(model, plan, Calibration(tuple(documents), ("",) * 3, "test"))
    sums = [torch.zeros(1, dtype=torch.float64)] * len(thin.blocks(model))
    for document in documents:
        for layer, seen in enumerate(neurons_of(thin, model, document[None])):
            z = seen[0] / seen[0].norm(dim=-1, keepdim=True).clamp(min=1e-300)
            sums[layer] = sums[layer] + (z * z).sum(0)
    for layer, total in enumerate(sums):
        found = fitted.values[f"experts.ffn.{layer}.prior"]
        torch.testing.assert_close(found.double(), total.sqrt(), rtol=1e-4, atol=1e-6)


def test_a_prior_must_be_fitted(model: nn.Module, thin: Sample) -> None:
    with pytest.raises(PlanError, match=r"experts\.prior: it has not been fitted"):
        skimp.apply(model, planned(model, experts={"keep": 0.5, "prior": 0.5}))
