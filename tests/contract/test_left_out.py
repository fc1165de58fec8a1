"""Law 3: left out means gone: from the logits, from memory, from the cache and from the trace."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from tests.contract.cases import Case, plan_for
from tests.contract.examples import Drawn, drawn, examples
from tests.contract.runs import assert_close, make_batch, uncached
from tests.families import SAMPLES, Sample, build
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import skimp
from skimp.methods import registry
from skimp.models.anatomy import Anatomy, Layer
from skimp.plan import Plan

BATCH = make_batch([9, 6, 1], seed=4)
TOKENS = 3  # fewer than any sliding window holds


def test_hard_plans_equal_the_masked_dense_model(
    sample: Sample, model: nn.Module, anatomy: Anatomy, case: Case
) -> None:
    dense = uncached(model, BATCH)
    for name, section in case.hard(anatomy.dense_layers).items():
        plan = plan_for(case, section, anatomy)
        with case.reference(sample, model, plan):
            wanted = uncached(model, BATCH)
        changed = (wanted - dense).abs().max() / dense.abs().max()
        assert changed > 1e-3, f"{name}: leaving this out does not show, so it tests nothing"
        with skimp.apply(model, plan):
            assert_close(uncached(model, BATCH), wanted)


@examples(60)
@given(example=drawn())
def test_generated_plans_equal_the_masked_dense_model(example: Drawn) -> None:
    model = example.model
    with example.case.reference(example.sample, model, example.plan):
        wanted = uncached(model, BATCH)
    with skimp.apply(model, example.plan):
        assert_close(uncached(model, BATCH), wanted)
        assert_anatomy(model, example.plan, example.anatomy)


def test_anatomy_of_the_planned_model(model: nn.Module, anatomy: Anatomy, case: Case) -> None:
    for section in case.hard(anatomy.dense_layers).values():
        plan = plan_for(case, section, anatomy)
        with skimp.apply(model, plan):
            assert_anatomy(model, plan, anatomy)


def assert_anatomy(model: nn.Module, plan: Plan, dense: Anatomy) -> None:
    """The anatomy read off the planned model is the one worked out, and both are true."""
    found, wanted = Anatomy.of(model), registry.reduce(plan, dense)
    assert [_costs(layer) for layer in found.layers] == [_costs(layer) for layer in wanted.layers]
    actual = sum(weight.numel() for weight in model.parameters())
    assert found.parameters == wanted.parameters == actual
    actual = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert found.weight_bytes == wanted.weight_bytes == actual
    assert found.kv_bytes_per_token == wanted.kv_bytes_per_token
    for name in ("model_type", "family", "dense_layers", "fingerprint", "tied"):
        assert getattr(found, name) == getattr(dense, name), name
    assert found.ffn_size == wanted.ffn_size


def _costs(layer: Layer) -> dict[str, object]:
    names = "state parameters bytes active_bytes flops_per_token score_flops kv_elements window"
    costs: dict[str, object] = {"source": layer.source}
    costs["shared"] = sum(part.parameters for part in layer.shared)
    for sublayer in (layer.attention, layer.ffn):
        costs |= {f"{sublayer.kind}.{name}": getattr(sublayer, name) for name in names.split()}
    return costs


# --- memory -------------------------------------------------------------------------------------


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """Spare the collector all that is there already, so that it takes no seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collection")
def test_what_is_left_out_dies_with_the_applied_plan(sample: Sample, case: Case) -> None:
    model = sample.build()
    anatomy = Anatomy.of(model)
    section = case.one(anatomy.dense_layers, "middle")
    section = {**section, "layers": [3]} if case.method == "drop" else section
    plan = plan_for(case, section, anatomy)
    gone = list(case.gone(sample, model, plan))
    assert gone
    kept = weakref.ref(sample.blocks(model)[0])
    applied = skimp.apply(model, plan)
    gc.collect()
    assert all(ref() is not None for ref in gone), "undo needs them"
    uncached(model, BATCH)
    del applied
    gc.collect()
    assert [ref().__class__.__name__ for ref in gone if ref() is not None] == []
    assert kept() is not None


# --- KV cache -----------------------------------------------------------------------------------


def test_cache_holds_only_kept_attention(model: nn.Module, anatomy: Anatomy, case: Case) -> None:
    assert_cache(model, anatomy)
    for section in case.hard(anatomy.dense_layers).values():
        plan = plan_for(case, section, anatomy)
        with skimp.apply(model, plan):
            assert_cache(model, registry.reduce(plan, anatomy))


@torch.no_grad()
def assert_cache(model: nn.Module, anatomy: Anatomy) -> None:
    batch = make_batch([TOKENS, TOKENS])
    cache = model(input_ids=batch.ids, use_cache=True).past_key_values
    filled = [layer for layer in cache.layers if layer.is_initialized and layer.keys.numel()]
    assert len(filled) == len(list(anatomy.sublayers("attention")))
    numbers = [each for layer in filled for each in (layer.keys, layer.values)]
    size = sum(each.numel() * each.element_size() for each in numbers)
    assert size == anatomy.kv_bytes_per_token * batch.ids.numel()


# --- FLOPs --------------------------------------------------------------------------------------


def test_flops_fall_by_what_is_left_out(sample: Sample, case: Case) -> None:
    model = build_countable(sample)
    anatomy = Anatomy.of(model)
    dense, branches = count_flops(sample, model)
    for section in case.hard(anatomy.dense_layers).values():
        plan = plan_for(case, section, anatomy)
        saved = case.saved(sample, model, plan, branches, TOKENS)
        assert saved != 0
        with skimp.apply(model, plan), FlopCounterMode(display=False) as counter:
            _run(model)
        assert counter.get_total_flops() == dense - saved


def test_anatomy_flops_are_those_counted(sample: Sample) -> None:
    model = build_countable(sample)
    _, branches = count_flops(sample, model)
    for layer in Anatomy.of(model).layers:
        block = sample.blocks(model)[layer.source]
        for sublayer in (layer.attention, layer.ffn):
            counted = branches[sublayer.kind, layer.source]
            scores = sublayer.score_flops * TOKENS**2
            stated = sublayer.flops_per_token * TOKENS + scores
            vectors = sum(
                weight.numel()
                for name, weight in block.named_parameters()
                if weight.dim() == 1 or name.endswith("bias")
            )
            # Adding a bias is no product, yet is stated with the weights beside it.
            assert counted <= stated <= counted + 2 * vectors * TOKENS, (
                sublayer.kind,
                layer.source,
            )


def build_countable(sample: Sample) -> nn.Module:
    """A model whose every product is an operation that torch's counter knows."""
    model = sample.build(attention="eager")
    model.set_experts_implementation("eager")
    return model


def count_flops(sample: Sample, model: nn.Module) -> tuple[int, dict[tuple[str, int], int]]:
    """FLOPs of a pass over TOKENS tokens: all, and those of each (kind, layer)."""
    branches: dict[tuple[str, int], int] = {}
    with FlopCounterMode(display=False) as counter, _measured(sample, model, counter, branches):
        _run(model)
    return counter.get_total_flops(), branches


@contextmanager
def _measured(
    sample: Sample,
    model: nn.Module,
    counter: FlopCounterMode,
    branches: dict[tuple[str, int], int],
) -> Iterator[None]:
    handles = []
    for index, block in enumerate(sample.blocks(model)):
        for kind, site in (("attention", sample.attention), ("ffn", sample.ffn)):
            place = kind, index

            def enter(*_: object, place: tuple[str, int] = place) -> None:
                branches[place] = -counter.get_total_flops()

            def leave(*_: object, place: tuple[str, int] = place) -> None:
                branches[place] += counter.get_total_flops()

            handles.append(block.get_submodule(site.enter).register_forward_pre_hook(enter))
            handles.append(block.get_submodule(site.leave).register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _run(model: nn.Module) -> None:
    model(input_ids=make_batch([TOKENS]).ids, use_cache=False)


# --- the reference itself -----------------------------------------------------------------------


def test_every_branch_shows_in_the_logits() -> None:
    """A tiny model in which some branch is invisible would let any bug in it pass."""
    for name, sample in SAMPLES.items():
        model = build(name)
        dense = uncached(model, BATCH)
        for block in sample.blocks(model):
            for site in (sample.attention, sample.ffn):
                module = block.get_submodule(site.leave)
                handle = module.register_forward_hook(_silence)
                changed = (uncached(model, BATCH) - dense).abs().max() / dense.abs().max()
                handle.remove()
                assert changed > 1e-3, f"{name}: {site.leave}"


def _silence(_: nn.Module, __: object, output: object) -> object:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    assert isinstance(output, torch.Tensor)
    return torch.zeros_like(output)
