"""What the flocking map and the overlap of experts say, against plain sums in float64."""

import json
import random

import pytest
import torch
from tests import families
from torch import Tensor, nn

from skimp.errors import EvaluationError, PlanError
from skimp.measure.flocking import common, flocking
from skimp.methods.apply import apply
from skimp.methods.experts.method import prior_name
from skimp.methods.experts.section import Experts
from skimp.models.anatomy import Anatomy
from skimp.models.feed_forward import feed_forwards
from skimp.plan import Plan

PROMPTS = [[5, 17, 3, 88, 41, 2, 60], [9, 9, 30, 71], [4, 66, 23, 12, 80]]


def neurons(model: nn.Module, prompt: list[int]) -> dict[int, Tensor]:
    """z [tokens, F] of every layer in float64, seen by the output maps."""
    found: dict[int, Tensor] = {}
    handles = []
    for layer, ffn in feed_forwards(model, Anatomy.of(model)).items():

        def see(_: nn.Module, args: tuple[Tensor], layer: int = layer) -> None:
            found[layer] = args[0].detach().double().reshape(len(prompt), -1)

        handles.append(model.get_submodule(ffn.output).register_forward_pre_hook(see))
    with torch.no_grad():
        model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return found


def experts(z: Tensor, count: int) -> set[int]:
    relative = z / z.norm(dim=-1, keepdim=True)
    scores = relative.square().sum(0).sqrt()
    # The first among equals: a ReLU leaves many neurons at zero.
    return set(scores.argsort(descending=True, stable=True)[:count].tolist())


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox", "gemma2", "phi"])
def test_values_are_those_of_a_plain_reference(family: str) -> None:
    model = families.build(family)
    section = Experts(0.5)
    found = flocking(model, section, PROMPTS, columns=16)
    assert found is not None and found.overlap is not None
    seen = [neurons(model, prompt) for prompt in PROMPTS]
    drawn = found.map
    assert drawn.layer in seen[0] and drawn.neurons == seen[0][drawn.layer].shape[1]
    for z, values in zip(seen, drawn.values, strict=False):
        z = z[drawn.layer]
        wanted = (z.abs() / z.norm(dim=-1, keepdim=True))[:, :: drawn.every]
        torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-7)
        assert values.shape[1] <= 16
    for one in found.overlap.layers:
        width = seen[0][one.layer].shape[1]
        count = section.count(one.layer, width)
        whole = [experts(z[one.layer], count) for z in seen]
        first = [experts(z[one.layer][: len(z[one.layer]) // 2], count) for z in seen]
        second = [experts(z[one.layer][len(z[one.layer]) // 2 :], count) for z in seen]
        apart = [(i, j) for i in range(3) for j in range(3) if i != j]
        assert one.chance == count / width
        assert one.prompts == pytest.approx(
            sum(len(whole[i] & whole[j]) for i, j in apart) / 6 / count
        )
        assert one.own == pytest.approx(
            sum(len(first[i] & second[i]) for i in range(3)) / 3 / count
        )
        assert one.other == pytest.approx(
            sum(len(first[i] & second[j]) for i, j in apart) / 6 / count
        )
    for i in range(3):
        assert found.overlap.pairs[i][i] == pytest.approx(1)
    means = [found.overlap.pairs[i][j] for i in range(3) for j in range(3) if i != j]
    assert sum(means) / 6 == pytest.approx(found.overlap.mean("prompts"))


def test_identical_prompts_share_everything() -> None:
    found = flocking(families.build("llama"), Experts(0.25), [PROMPTS[0]] * 2)
    assert found and found.overlap
    assert found.overlap.mean("prompts") == 1
    assert found.overlap.mean("own") == found.overlap.mean("other") < 1
    assert found.overlap.mean("chance") == 0.25


def test_sets_drawn_at_random_share_what_chance_gives() -> None:
    generator = random.Random(0)
    sets = torch.zeros(40, 400, dtype=torch.bool)
    for row in sets:
        row[generator.sample(range(400), 100)] = True
    shares = common(sets, sets)
    assert torch.equal(shares.diagonal(), torch.ones(40, dtype=torch.float64))
    apart = shares[~torch.eye(40, dtype=torch.bool)]
    assert float(apart.mean()) == pytest.approx(0.25, abs=0.01)
    with pytest.raises(ValueError):
        common(sets & False, sets)


def test_each_layer_has_its_own_chance_and_kept_layers_none() -> None:
    model = families.build("llama")
    layers = len(feed_forwards(model, Anatomy.of(model)))
    keep = (1.0, 0.5, *[0.25] * (layers - 2))
    found = flocking(model, Experts(keep), PROMPTS)
    assert found and found.overlap
    assert [one.layer for one in found.overlap.layers] == list(range(1, layers))
    assert [one.chance for one in found.overlap.layers] == list(keep[1:])
    assert found.map.layer > 0


def test_a_planned_model_is_watched_as_it_is() -> None:
    model = families.build("llama")
    plan = Plan.empty(Anatomy.of(model)).with_section("drop", {"ffn": [1], "attention": [0]})
    dense = flocking(model, Experts(0.5), PROMPTS, layer=2)
    with apply(model, plan):
        found = flocking(model, Experts(0.5), PROMPTS, layer=2)
        with pytest.raises(EvaluationError, match="layer: 1 "):
            flocking(model, Experts(0.5), PROMPTS, layer=1)
        wanted = neurons(model, PROMPTS[0])[2]
    assert found and found.overlap and dense
    assert 1 not in [one.layer for one in found.overlap.layers]
    wanted = wanted.abs() / wanted.norm(dim=-1, keepdim=True)
    every = found.map.every
    torch.testing.assert_close(
        found.map.values[0].double(), wanted[:, ::every], atol=1e-6, rtol=1e-5
    )
    assert not torch.allclose(found.map.values[0], dense.map.values[0])


def test_a_prior_alone_makes_all_prompts_agree() -> None:
    model = families.build("llama")
    widths = {k: ffn.width for k, ffn in feed_forwards(model, Anatomy.of(model)).items()}
    values = {prior_name(k): torch.rand(width) for k, width in widths.items()}
    found = flocking(model, Experts(0.5, prior=1.0), PROMPTS, values=values)
    assert found and found.overlap and found.overlap.mean("other") == 1


def test_nothing_to_choose_and_nothing_to_compare() -> None:
    model = families.build("llama")
    assert flocking(model, Experts(1.0), PROMPTS) is None
    for section, prompts in (
        (Experts(0.5), PROMPTS[:1]),
        (Experts(0.5, select="magnitude"), PROMPTS),
        (Experts(0.5, select="random"), PROMPTS),
    ):
        found = flocking(model, section, prompts)
        assert found and found.overlap is None
        assert found.to_dict()["overlap"] is None


def test_refusals_say_why() -> None:
    with pytest.raises(PlanError, match="experts"):
        flocking(families.build("qwen3_moe"), Experts(0.5), PROMPTS)
    model = families.build("llama")
    for prompts in ([], [[5, 6], [7]]):
        with pytest.raises(EvaluationError, match="prompts"):
            flocking(model, Experts(0.5), prompts)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_document_gives_the_values_back() -> None:
    model = families.build("llama")
    found = flocking(model, Experts(0.5), PROMPTS, tokens=4)
    assert found
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["prompts"] == [7, 4, 5]
    drawn = document["map"]
    top = drawn["top"]
    assert top == pytest.approx(found.map.top, rel=0.01)
    for rows, values in zip(drawn["prompts"], found.map.values, strict=True):
        assert len(rows) == 4
        levels = torch.tensor([list(bytes.fromhex(row)) for row in rows]) * top / 255
        torch.testing.assert_close(levels, values.clamp(max=top), rtol=0, atol=0.51 * top / 255)
