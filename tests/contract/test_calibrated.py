"""The laws on one set of experts for good where they are not those of every other method."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.contract.cases import CASES, ROUTED, plan_for
from tests.contract.masking import masked
from tests.contract.runs import assert_close, make_batch, uncached
from tests.contract.test_engine import check
from tests.contract.test_left_out import assert_anatomy
from tests.contract.test_reversible import Portrait
from tests.contract.thinning import fixed
from tests.families import SAMPLES, Sample, build
from torch import nn

import skimp
from skimp.engine import Engine
from skimp.errors import LoadError, PlanError, SkimpError
from skimp.methods import registry
from skimp.models.anatomy import Anatomy, Sublayer
from skimp.plan import Plan

BATCH = make_batch([9, 6, 1], seed=4)
DROPS = {
    "zero": {"attention": [0], "ffn": [1], "layers": [3], "fill": "zero"},
    "mean": {"attention": [1], "ffn": [2], "fill": "mean"},
    "repair": {"attention": [0], "ffn": [1], "fill": "zero", "repair": "full"},
}


@pytest.fixture(params=[name for name in SAMPLES if name not in ROUTED])
def sample(request: pytest.FixtureRequest) -> Sample:
    return SAMPLES[request.param]


def both(anatomy: Anatomy, drop: dict[str, Any], **experts: Any) -> Plan:
    """A fitted plan that drops and thins."""
    thin = plan_for(
        CASES["experts-calibrated"], {"scope": "calibrated", "keep": 0.6, **experts}, anatomy
    )
    dropped = plan_for(CASES["drop-zero"], drop, anatomy)
    return dropped.with_section("experts", thin.sections["experts"]).with_values(thin.values)


@pytest.mark.parametrize("drop", DROPS)
def test_beside_dropped_sublayers(model: nn.Module, sample: Sample, drop: str) -> None:
    """Laws 3 and 6. A repair, fitted on the dense width, is cut with the weights it is added to."""
    anatomy, before = Anatomy.of(model), Portrait.of(model)
    plan = both(anatomy, DROPS[drop])
    with masked(sample, model, plan), fixed(sample, model, plan):
        wanted = uncached(model, BATCH)
    with masked(sample, model, plan):
        whole = uncached(model, BATCH)
    assert (wanted - whole).abs().max() > 1e-3 * whole.abs().max(), "thinning does not show"
    with skimp.apply(model, plan):
        assert_close(uncached(model, BATCH), wanted)
        assert_anatomy(model, plan, anatomy)
        found, foretold = Anatomy.of(model), registry.reduce(plan, anatomy)
        assert [_maps(each) for each in found.sublayers("ffn")] == [
            _maps(each) for each in foretold.sublayers("ffn")
        ]
    before.assert_same(model)


def _maps(each: tuple[int, Sublayer]) -> tuple[Any, ...]:
    source, ffn = each
    return source, [(part.role, part.shape, part.parameters, part.bytes) for part in ffn.parts]


def test_engine_beside_dropped_sublayers(model: nn.Module, sample: Sample) -> None:
    """Law 2: no way of decoding needs to know."""
    plan = both(Anatomy.of(model), DROPS["mean"])
    engine = Engine(model, plan)
    with skimp.apply(model, plan):
        check(model, engine, sample)


def test_saved_beside_dropped_sublayers(model: nn.Module, sample: Sample, tmp_path: Path) -> None:
    """Law 5."""
    plan = both(Anatomy.of(model), DROPS["repair"])
    with skimp.apply(model, plan):
        wanted, planned = uncached(model, BATCH), Anatomy.of(model)
        skimp.save(model, None, plan, tmp_path / "out")
    loaded = skimp.load(str(tmp_path / "out"), dtype="float32")
    assert torch.equal(uncached(loaded.model, BATCH), wanted)
    assert Anatomy.of(loaded.model) == planned
    assert loaded.plan is not None and loaded.plan.to_dict() == plan.to_dict()


def test_block_that_does_not_divide_the_width_keeps_all(model: nn.Module) -> None:
    anatomy, before = Anatomy.of(model), Portrait.of(model)
    case = CASES["experts-calibrated"]
    plan = plan_for(case, {"scope": "calibrated", "keep": 0.5, "block": 64}, anatomy)
    with skimp.apply(model, plan):
        if all(len(rows) % 64 for rows in plan.values.values()):
            before.assert_same(model)


# --- values that do not fit ---------------------------------------------------------------------

WRONG = {  # where 28 of 48 neurons are to be kept
    "too few": torch.arange(27, dtype=torch.int32),
    "too many": torch.arange(29, dtype=torch.int32),
    "descending": torch.arange(28, dtype=torch.int32).flip(0),
    "twice": torch.arange(28, dtype=torch.int32).clamp(max=26),
    "beyond": torch.arange(21, 49, dtype=torch.int32),
    "negative": torch.arange(-1, 27, dtype=torch.int32),
    "fractions": torch.arange(28, dtype=torch.float32),
    "truths": torch.ones(28, dtype=torch.bool),
    "a table": torch.arange(28, dtype=torch.int32)[None],
    "one number": torch.tensor(3),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rows_are_refused(wrong: str) -> None:
    model = build("llama")
    before = Portrait.of(model)
    plan = both(Anatomy.of(model), {})
    plan = plan.with_values({"experts.ffn.2.kept": WRONG[wrong]})
    with pytest.raises(PlanError, match=r"^experts\.ffn\.2\.kept: does not list 28 .*--fit"):
        skimp.apply(model, plan)
    before.assert_same(model)


def test_missing_rows_are_refused(model: nn.Module) -> None:
    anatomy, before = Anatomy.of(model), Portrait.of(model)
    plan = Plan.empty(anatomy).with_section("experts", {"scope": "calibrated", "keep": 0.6})
    with pytest.raises(
        PlanError, match=r"^experts\.scope: .*experts\.ffn\.0\.kept is missing.*--fit"
    ):
        skimp.apply(model, plan)
    before.assert_same(model)


# --- damaged folders ----------------------------------------------------------------------------

DAMAGE: dict[str, Any] = {
    "wider than the dense model": {"width": 49},
    "no width": {"width": 0},
    "negative": {"width": -1},
    "not a number": {"width": "half"},
    "another width": {"width": 27},
    "foreign path": {"output": "mlp.no_such"},
    "not a map": {"output": "mlp.act_fn"},
    "no list": {"inputs": None},
    "fused": {"fused": True},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_layout_is_refused(damage: str, tmp_path: Path) -> None:
    model, folder = build("llama"), tmp_path / "out"
    plan = both(Anatomy.of(model), {})
    with skimp.apply(model, plan):
        skimp.save(model, None, plan, folder)
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data["skimp"]["layout"]["kept"][1]["neurons"].update(DAMAGE[damage])
    path.write_text(json.dumps(data))
    with pytest.raises(LoadError) as caught:
        skimp.load(str(folder))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_weights_of_the_dense_width_are_refused(tmp_path: Path) -> None:
    model, folder = build("llama"), tmp_path / "out"
    plan = both(Anatomy.of(model), {})
    with skimp.apply(model, plan):
        skimp.save(model, None, plan, folder)
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.1.mlp.up_proj.weight"] = torch.ones(48, 32)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SkimpError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        skimp.load(str(folder))
