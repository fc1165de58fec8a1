"""Decoders without a row are read right, or refused with the reason; never read wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.families import REFUSED, SAMPLES, Sample, build, discovered
from torch import nn
from transformers import AutoModelForCausalLM

from skimp.errors import LoadError
from skimp.models.anatomy import Anatomy
from skimp.models.discovery import discover


@pytest.fixture(params=discovered())
def sample(request: pytest.FixtureRequest) -> Sample:
    return SAMPLES[request.param]


def test_branches_are_found(sample: Sample) -> None:
    family = discover(sample.build())
    assert family.layers == sample.layers
    for branch, site in ((family.attention, sample.attention), (family.ffn, sample.ffn)):
        assert branch.modules[0] == site.enter
        assert (branch.after or branch.modules)[-1] == site.leave


@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        *((name, False) for name in ("granite", "stablelm", "glm4", "gemma", "olmo")),
        *((name, True) for name in ("stablelm-parallel", "cohere", "phi", "gptj")),
    ],
)
def test_parallel_layers_are_told_from_sequential(name: str, parallel: bool) -> None:
    assert discover(build(name)).parallel is parallel


@pytest.mark.parametrize(
    ("name", "attention", "ffn"),
    [
        ("granite", ("input_layernorm",), ("post_attention_layernorm",)),
        ("cohere", (), ()),  # one norm feeds both, so it is the layer's
        ("exaone4", (), ()),
        ("glm4", ("input_layernorm",), ("post_attention_layernorm",)),
    ],
)
def test_norms_before(name: str, attention: tuple[str, ...], ffn: tuple[str, ...]) -> None:
    family = discover(build(name))
    assert (family.attention.before, family.ffn.before) == (attention, ffn)


def test_final_norm(sample: Sample) -> None:
    model = sample.build()
    path = discover(model).final_norm
    seen: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, *_: seen.append(module))
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
    ]
    model(torch.tensor([[3, 4]]))
    for handle in handles:
        handle.remove()
    assert seen[-1] is model.get_submodule(path)


def test_constant_is_folded_nowhere(sample: Sample) -> None:
    """A probe cannot tell whether a branch is added as it is: Granite scales it first."""
    family = discover(sample.build())
    assert family.attention.output == family.ffn.output == ()


def test_model_is_left_as_it_was(sample: Sample) -> None:
    model = sample.build()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.named_modules())
    hooks = [_hooks(module) for _, module in modules]
    Anatomy.of(model)
    assert list(model.named_modules()) == modules
    assert [_hooks(module) for _, module in modules] == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module.training for _, module in modules)


def _hooks(module: nn.Module) -> tuple[list[Any], list[Any]]:
    return list(module._forward_hooks), list(module._forward_pre_hooks)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_taken_apart_is_refused(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(REFUSED[name]()).eval()
    hooks = [_hooks(module) for module in model.modules()]
    with pytest.raises(LoadError) as caught:
        Anatomy.of(model)
    assert_refusal(str(caught.value), model.config.model_type)
    assert [_hooks(module) for module in model.modules()] == hooks


def assert_refusal(message: str, kind: str) -> None:
    assert message.startswith(f"model type {kind!r} cannot be taken apart: ")
    assert message.endswith("; add a row for it to skimp/models/families.py.")
    assert "\n" not in message


class _Changed(nn.Module):
    """A decoder layer that does one thing more than it should."""

    def __init__(self, layer: nn.Module, change: Callable[..., Any]) -> None:
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)
        self._plain, self._change = [layer], change

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return self._change(self._plain[0], hidden_states, **kwargs)


def _scaled(layer: nn.Module, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return layer(hidden, **kwargs) * 0.5


def _shifted(layer: nn.Module, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return layer(hidden + 1, **kwargs)


def _in_place(layer: nn.Module, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    hidden += 1
    return layer(hidden, **kwargs)


@pytest.mark.parametrize("change", [_scaled, _shifted, _in_place])
def test_layer_that_changes_the_stream_is_refused(change: Callable[..., Any]) -> None:
    model = build("granite")
    layers = SAMPLES["granite"].blocks(model)
    for index, layer in enumerate(layers):
        layers[index] = _Changed(layer, change)
    with pytest.raises(LoadError, match="do more than add their branches"):
        Anatomy.of(model)


def test_layers_that_are_not_alike_are_refused() -> None:
    model = build("granite")
    layers = SAMPLES["granite"].blocks(model)
    other = SAMPLES["exaone4"].blocks(build("exaone4"))[0].mlp
    layers[2].mlp = nn.Sequential(layers[2].mlp, other)
    layers[2].post_attention_layernorm = nn.Identity()
    with pytest.raises(LoadError, match="are not alike"):
        Anatomy.of(model)


def test_layers_of_an_unknown_type_are_refused() -> None:
    model = build("smollm3")
    model.config.layer_types = ["full_attention", "conv", "full_attention", "conv"]
    with pytest.raises(LoadError, match="does not know layers of type 'conv'"):
        Anatomy.of(model)


def test_shared_cache_is_refused() -> None:
    model = build("smollm3")
    model.config.num_kv_shared_layers = 2
    with pytest.raises(LoadError, match="read the KV cache of others"):
        Anatomy.of(model)


def test_without_weights_is_refused() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SAMPLES["granite"].config())
    with pytest.raises(LoadError, match="without its weights"):
        Anatomy.of(model)
