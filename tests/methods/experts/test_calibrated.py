"""Which neurons calibration text keeps for good, and how a section with that scope is read."""

import re
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny
from tests.contract.thinning import neurons_of, widths
from tests.families import SAMPLES
from torch import Tensor, nn

import skimp
from skimp.calibration.replay import Replay, pack
from skimp.calibration.text import Calibration
from skimp.engine import Engine
from skimp.errors import PlanError
from skimp.measure.cost import byte_bound, compute_bound
from skimp.methods import fit as fitting
from skimp.methods.drop.closed_form import REPAIR_RIDGE
from skimp.methods.experts.section import (
    BLIND,
    Experts,
    Repair,
    Select,
    by_prompt,
    read_section,
)
from skimp.methods.fit import fit_plan, needs_fit
from skimp.methods.registry import reduce
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan
from skimp.workload import Workload

FAMILIES = ("llama", "gpt2", "phi3", "opt", "falcon-7b", "gemma2")


def plan_of(model: nn.Module, **section: Any) -> Plan:
    section = {"scope": "calibrated", **section}
    return Plan.empty(Anatomy.of(model)).with_section("experts", section)


def kept(plan: Plan) -> dict[int, list[int]]:
    return {int(name.split(".")[2]): rows.tolist() for name, rows in plan.values.items()}


# --- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_the_neurons_of_most_weight_are_kept(name: str) -> None:
    """By the statistic in float64, over every token of every document."""
    sample, text = SAMPLES[name], tiny.calibration()
    model = sample.build()
    found = kept(fit_plan(model, plan_of(model, keep=0.4), text))
    sums = [torch.zeros(1, dtype=torch.float64)] * len(found)
    for document in text.documents:
        for layer, seen in enumerate(neurons_of(sample, model, document[None])):
            z = seen[0] / seen[0].norm(dim=-1, keepdim=True).clamp(min=1e-300)
            sums[layer] = sums[layer] + (z * z).sum(0)
    for layer, total in enumerate(sums):
        best = total.topk(int(0.4 * len(total))).indices
        assert found[layer] == sorted(best.tolist()), layer


@pytest.mark.parametrize("name", FAMILIES)
def test_magnitude_reads_the_weights_alone(name: str) -> None:
    sample = SAMPLES[name]
    model = sample.build()
    found = [
        kept(
            fit_plan(model, plan_of(model, keep=0.3, select="magnitude"), tiny.calibration(seed=s))
        )
        for s in (0, 1)
    ]
    assert found[0] == found[1]
    for layer, block in enumerate(sample.blocks(model)):
        size = norms(block)
        best = size.topk(int(0.3 * len(size))).indices
        assert found[0][layer] == sorted(best.tolist())


def norms(block: nn.Module) -> Tensor:
    """What the norms of a neuron's rows multiply to [F]."""
    maps = dict(block.named_modules())
    if "mlp.gate_up_proj" in maps:
        gate, up = maps["mlp.gate_up_proj"].weight.chunk(2)
        return gate.norm(dim=1) * up.norm(dim=1)
    if "mlp.gate_proj" in maps:
        return maps["mlp.gate_proj"].weight.norm(dim=1) * maps["mlp.up_proj"].weight.norm(dim=1)
    if "mlp.c_fc" in maps:
        return maps["mlp.c_fc"].weight.norm(dim=0)  # Conv1D
    (first,) = {"fc1", "mlp.dense_h_to_4h"} & maps.keys()
    return maps[first].weight.norm(dim=1)


@st.composite
def sections(draw: st.DrawFn) -> dict[str, Any]:
    share = st.floats(0, 1, exclude_min=True)
    return {
        "keep": draw(share | st.lists(share, min_size=4, max_size=4)),
        "select": draw(st.sampled_from(get_args(Select))),
        "block": draw(st.sampled_from([1, 16, 32, 64])),
        "seed": draw(st.integers(0, 3)),
    }


@settings(max_examples=25)
@given(section=sections(), name=st.sampled_from(FAMILIES))
def test_any_section_is_fitted_applied_and_taken_off(section: dict[str, Any], name: str) -> None:
    model = SAMPLES[name].build()
    plan = plan_of(model, **section)
    anatomy = Anatomy.of(model)
    fitted = fit_plan(model, plan, tiny.calibration())
    read = read_section(plan.sections["experts"])
    assert set(kept(fitted)) == {la for la in range(4) if not read.dense(la)}
    for layer, rows in kept(fitted).items():
        width = widths(anatomy)[layer]
        assert len(rows) == read.count(layer, width)
        assert rows == sorted(set(rows)) and rows[0] >= 0 and rows[-1] < width
        if width % read.block == 0:
            blocks = {row // read.block for row in rows}
            assert len(rows) == len(blocks) * read.block, "blocks are torn"
    assert all(rows.dtype == torch.int32 for rows in fitted.values.values())
    assert kept(fit_plan(model, plan, tiny.calibration())) == kept(fitted), "seeded"
    before = dict(model.named_parameters())
    with skimp.apply(model, fitted):
        assert Anatomy.of(model).parameters == reduce(fitted, anatomy).parameters
    assert all(weight is before[name] for name, weight in model.named_parameters())


def test_the_text_decides_unless_the_choice_is_blind() -> None:
    model = SAMPLES["llama"].build()
    for select in get_args(Select):
        plan = plan_of(model, keep=0.4, select=select)
        one, other = (fit_plan(model, plan, tiny.calibration(seed=s)) for s in (0, 1))
        assert (kept(one) == kept(other)) is (select in BLIND), select


# --- how much text ------------------------------------------------------------------------------


def test_no_more_text_is_read_than_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SAMPLES["llama"].build()
    documents = tiny.documents(40, longest=60)
    text = Calibration(documents, ("a", "b") * 20, "random tokens", seed=3)
    read: list[int] = []
    real = fitting.Replay

    def counting(model: nn.Module, batches: Any) -> Any:
        read.append(sum(batch.tokens for batch in batches))
        return real(model, batches)

    monkeypatch.setattr(fitting, "Replay", counting)
    monkeypatch.setattr("skimp.methods.experts.method.TOKENS", 300)
    fit_plan(model, plan_of(model, keep=0.4), text)
    drop = Plan.empty(Anatomy.of(model)).with_section("drop", {"ffn": [1], "fill": "mean"})
    fit_plan(model, drop, text)
    assert 300 <= read[0] < 360
    assert read[1] == text.tokens


def test_only_what_has_no_values_is_fitted() -> None:
    model = SAMPLES["llama"].build()
    drop = {"ffn": [1], "attention": [2], "fill": "mean"}
    plan = Plan.empty(Anatomy.of(model)).with_section("drop", drop)
    plan = fit_plan(model, plan, tiny.calibration(seed=0))
    both = plan.with_section("experts", {"scope": "calibrated", "keep": 0.5})
    assert needs_fit(both, Anatomy.of(model))
    fitted = fit_plan(model, both, tiny.calibration(seed=1))
    assert not needs_fit(fitted, Anatomy.of(model))
    assert all(fitted.values[name] is value for name, value in plan.values.items())
    assert len(fitted.values) == len(plan.values) + 4


# --- what it wins -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_costs_fall_in_prefill_too_and_decoding_is_native(name: str) -> None:
    """Prompt-adaptive experts leave the prefill, and the memory, as they are."""
    model = SAMPLES[name].build()
    dense, work = Anatomy.of(model), Workload(8, 8, 1)
    plan = fit_plan(model, plan_of(model, keep=0.5), tiny.calibration())
    found, by_each = reduce(plan, dense), reduce(plan_of(model, keep=0.5, scope="prompt"), dense)
    bound = byte_bound(dense, found, work)
    assert bound == pytest.approx(byte_bound(dense, by_each, work), rel=0.01) and bound > 1.1
    assert compute_bound(dense, found, work) > compute_bound(dense, by_each, work) == 1
    assert found.weight_bytes < by_each.weight_bytes == dense.weight_bytes
    engine = Engine(model, plan)
    assert engine.path() == "native"
    assert engine.anatomy == found
    assert sum(weight.nbytes for weight in engine.model.parameters()) == found.weight_bytes


def test_bfloat16_and_frozen_weights() -> None:
    model = SAMPLES["gpt2"].build(dtype=torch.bfloat16)
    plan = fit_plan(model, plan_of(model, keep=0.5), tiny.calibration())
    first = next(model.parameters())
    first.requires_grad_(False)
    with skimp.apply(model, plan):
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        assert [w.requires_grad for w in model.parameters()].count(False) == 1
        assert model.get_submodule("transformer.h.0.mlp.c_fc").nf == 64
        assert model.get_submodule("transformer.h.0.mlp.c_proj").nx == 64


# --- the repair ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "falcon-7b", "phi3"])
@torch.no_grad()
def test_repair_brings_the_residual_stream_back(name: str) -> None:
    """And the weights it is fitted on are those of the dense model afterwards."""
    model = SAMPLES[name].build()
    text = tiny.calibration(count=60, longest=24)
    replay = Replay(model, pack(text.documents))
    dense = [replay.run(entry, batch) for batch, entry in enumerate(replay.entry)]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    errors = {}
    for repair in get_args(Repair):
        plan = fit_plan(model, plan_of(model, keep=0.5, repair=repair), text)
        assert all(torch.equal(w, before[n]) for n, w in model.named_parameters())
        with skimp.apply(model, plan):
            planned = Replay(model, replay.batches)
            finals = [planned.run(entry, batch) for batch, entry in enumerate(planned.entry)]
        real = [batch.real for batch in replay.batches]
        gaps = [(d - p)[r] for d, p, r in zip(dense, finals, real, strict=True)]
        errors[repair] = float(torch.cat(gaps).square().mean())
    assert errors["full"] < 0.8 * errors["none"]


def test_first_repair_is_ridge_regression_on_what_is_left() -> None:
    """Before anything else has changed, it adds the dense output's part that kept neurons tell."""
    sample, text = SAMPLES["llama"], tiny.calibration(count=60, longest=24)
    model = sample.build()
    plan = fit_plan(model, plan_of(model, keep=[0.5, 1.0, 1.0, 1.0], repair="full"), text)
    rows = plan.values["experts.ffn.0.kept"].long()
    z = torch.cat([neurons_of(sample, model, ids[None])[0][0] for ids in text.documents])
    weight = model.get_submodule("model.layers.0.mlp.down_proj").weight.detach().double()
    kept, lost = z[:, rows], z @ weight.T - z[:, rows] @ weight[:, rows].T
    moments = kept.T @ kept / len(z)
    damped = moments + REPAIR_RIDGE * moments.diagonal().mean() * torch.eye(len(rows))
    wanted = torch.linalg.solve(damped, kept.T @ lost / len(z)).T
    found = plan.values["experts.ffn.0.repair"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-3)
    assert {name.split(".")[2] for name in plan.values} == {"0"}


def test_wrong_repair_is_refused() -> None:
    model = SAMPLES["llama"].build()
    plan = fit_plan(model, plan_of(model, keep=0.5, repair="full"), tiny.calibration())
    name = "experts.ffn.2.repair"
    rest = {key: value for key, value in plan.values.items() if key != name}
    with pytest.raises(PlanError, match=r"^experts\.repair: full has not been fitted .*--fit"):
        skimp.apply(model, replace(plan, values=rest))
    with pytest.raises(PlanError, match=r"^experts\.ffn\.2\.repair: has shape \(32, 3\), .*--fit"):
        skimp.apply(model, plan.with_values({name: torch.ones(32, 3)}))
    with pytest.raises(PlanError, match=r"^experts\.repair: .*scope: calibrated"):
        read_section({"repair": "full"})


# --- the section --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("refresh", 4), ("prior", 0.5), ("batch", "shared"), ("fill", "mean"), ("prior", 1)],
)
def test_what_only_prompts_can_have_is_refused(field: str, value: Any) -> None:
    with pytest.raises(PlanError, match=rf"^experts\.{field}: .*no meaning.*scope"):
        read_section({"scope": "calibrated", field: value})
    read_section({"scope": "prompt", field: value})
    read_section({**Experts().to_dict(), "scope": "calibrated"})  # written out, at their defaults


@pytest.mark.parametrize("value", ["all", 1, None, True])
def test_unknown_scope_is_refused(value: Any) -> None:
    with pytest.raises(PlanError, match=re.escape("experts.scope: ")):
        read_section({"scope": value})


def test_who_chooses() -> None:
    model = SAMPLES["llama"].build()
    assert by_prompt(None) is None
    assert by_prompt(Plan.empty(Anatomy.of(model))) is None
    assert by_prompt(plan_of(model)) is None
    assert by_prompt(plan_of(model, scope="prompt", keep=0.25)) == Experts(0.25)
