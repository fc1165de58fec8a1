"""How feed-forwards are wired: found for every family, or refused with the reason."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.families import SAMPLES, Sample, build
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import skimp
from skimp.errors import PlanError
from skimp.models.anatomy import Anatomy
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.plan import Plan

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3")
PLAIN = [name for name in SAMPLES if name not in MIXTURES]


@pytest.fixture(params=PLAIN)
def sample(request: pytest.FixtureRequest) -> Sample:
    return SAMPLES[request.param]


def read(model: nn.Module) -> dict[int, FeedForward]:
    return feed_forwards(model, Anatomy.of(model))


def test_every_layer_is_read(sample: Sample) -> None:
    model = sample.build()
    found = read(model)
    assert list(found) == list(range(len(sample.blocks(model))))
    for layer, wiring in found.items():
        for path in (*wiring.inputs, wiring.output):
            assert path.startswith(f"{sample.layers}.{layer}.")
            assert isinstance(model.get_submodule(path), (nn.Linear, Conv1D))


@pytest.mark.parametrize(
    ("name", "wiring"),
    [
        ("llama", (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", 48, False)),
        ("phi3", (("mlp.gate_up_proj",), "mlp.down_proj", 48, True)),
        ("opt", (("fc1",), "fc2", 48, False)),
        ("gpt2", (("mlp.c_fc",), "mlp.c_proj", 128, False)),
        ("nemotron", (("mlp.up_proj",), "mlp.down_proj", 48, False)),
    ],
)
def test_wiring(name: str, wiring: tuple[tuple[str, ...], str, int, bool]) -> None:
    inputs, output, width, fused = wiring
    path = f"{SAMPLES[name].layers}.2"
    wanted = FeedForward(tuple(f"{path}.{x}" for x in inputs), f"{path}.{output}", width, fused)
    assert read(build(name))[2] == wanted


def rows(model: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias of a linear map, itself in the model, whichever way it lies."""
    module: Any = model.get_submodule(path)
    return module.weight.T if isinstance(module, Conv1D) else module.weight, module.bias


def test_silenced_neurons_are_the_output_maps_columns(sample: Sample) -> None:
    """A neuron whose rows are zero gives act(0), whatever the token; others give what they gave."""
    model = sample.build()
    wiring = read(model)[1]
    gone = torch.arange(wiring.width) % 5 == 2
    seen: list[Tensor] = []
    hook = model.get_submodule(wiring.output).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach().flatten(0, -2))
    )
    tokens = torch.tensor([[3, 14, 15, 92, 65]])
    with torch.no_grad():
        model(tokens, use_cache=False)
        for path in wiring.inputs:
            weight, bias = rows(model, path)
            doomed = gone.repeat(2) if wiring.fused else gone
            weight[doomed] = 0
            if bias is not None:
                bias[doomed] = 0
        model(tokens, use_cache=False)
    hook.remove()
    before, after = seen
    torch.testing.assert_close(after[:, ~gone], before[:, ~gone])
    assert (after[:, gone] == 0).all()  # act(0) is 0 in all of these families
    assert (before[:, gone] != 0).any()


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_are_refused(name: str) -> None:
    model = build(name)
    with pytest.raises(PlanError) as caught:
        read(model)
    assert_refusal(str(caught.value))


def assert_refusal(message: str) -> None:
    assert message.startswith("experts: the FF of layer ")
    assert " is no plain or gated feed-forward (" in message
    assert message.endswith("); leave `experts` out of the plan.")
    assert "\n" not in message


def test_dense_layers_of_a_mixture_count_by_their_number() -> None:
    """Layer 0 of this mixture is dense, so the first that is refused is layer 1."""
    with pytest.raises(PlanError, match="FF of layer 1 is no plain"):
        read(build("deepseek_v3"))


def test_model_is_left_as_it_was(sample: Sample) -> None:
    model = sample.build()
    anatomy = Anatomy.of(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    feed_forwards(model, anatomy)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "nemotron", "glm"])
def test_narrow_dtypes(name: str, dtype: torch.dtype) -> None:
    assert read(build(name, dtype=dtype)) == read(build(name))


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "opt"])
def test_shapes_alone(name: str) -> None:
    model = build(name)
    wanted, anatomy = read(model), Anatomy.of(model)
    assert feed_forwards(model.to("meta"), anatomy) == wanted


# --- planned models -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "opt", "opt-post-norm", "phi"])
def test_planned_model_is_read_by_source(name: str) -> None:
    model = build(name)
    dense = read(model)
    weights = {layer: rows(model, wiring.output)[0] for layer, wiring in dense.items()}
    anatomy = Anatomy.of(model)
    plan = Plan.empty(anatomy).with_section("drop", {"layers": [0], "attention": [3], "ffn": [2]})
    with skimp.apply(model, plan):
        found = read(model)
        assert list(found) == [1, 3]
        for layer, wiring in found.items():
            assert (wiring.width, wiring.fused) == (dense[layer].width, dense[layer].fused)
            assert torch.equal(rows(model, wiring.output)[0], weights[layer])
    assert read(model) == dense


def test_nothing_left() -> None:
    model = build("llama")
    plan = Plan.empty(Anatomy.of(model)).with_section("drop", {"ffn": [0, 1, 2, 3]})
    with skimp.apply(model, plan):
        assert read(model) == {}


# --- what only looks like one -------------------------------------------------------------------


class _Odd(nn.Module):
    """A llama's FF whose neurons or maps are not what they should be."""

    def __init__(self, neurons: Callable[[Tensor, Tensor], Tensor], **maps: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 48), nn.Linear(32, 48)
        self.neurons = neurons
        for name, module in maps.items():
            self.add_module(name, module)
        self.down_proj = maps.get("down_proj", nn.Linear(48, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.neurons(self.gate_proj(x), self.up_proj(x)))


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return gate.sigmoid() * up


def _refused(odd: nn.Module, words: str) -> None:
    model = build("llama")
    anatomy = Anatomy.of(model)
    model.get_submodule("model.layers.2").mlp = odd
    with pytest.raises(PlanError, match=words) as caught:
        feed_forwards(model, anatomy)
    assert_refusal(str(caught.value))
    assert "FF of layer 2 " in str(caught.value)


@pytest.mark.parametrize(
    ("neurons", "words"),
    [
        (lambda gate, up: nn.functional.normalize(gate * up, dim=-1), "more than its own rows"),
        (lambda gate, up: gate.softmax(-1) * up, "more than its own rows"),
        (lambda gate, up: gate.sigmoid() * up.flip(-1), "more than its own rows"),
        (lambda gate, up: gate.unflatten(-1, (6, 8)).softmax(-1).flatten(-2) * up, "no token can"),
        (lambda gate, up: (gate * up)[..., :1], "not called once, with the neurons"),
        (lambda gate, up: gate * up.sigmoid(), "not linear in what the last input map gives"),
        (lambda gate, up: gate.sigmoid() + up.exp(), "not linear in"),
        (lambda gate, up: 1 / 0, "no token can be sent through it: division by zero"),
    ],
)
def test_neurons_that_are_none(neurons: Callable[[Tensor, Tensor], Tensor], words: str) -> None:
    _refused(_Odd(neurons), words)


def test_output_map_called_twice() -> None:
    class Twice(_Odd):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x)

    _refused(Twice(_gated), "not called once")


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ({"up_proj": nn.Linear(32, 47)}, "mlp.up_proj maps 32 values to 47"),
        ({"gate_proj": nn.Linear(31, 48)}, "mlp.gate_proj maps 31 values to 48"),
        ({"down_proj": nn.Linear(48, 31)}, "gives 31 values, not the model's 32"),
        ({"norm": nn.LayerNorm(48)}, "mlp.norm has weights, but is no linear map"),
        ({"third": nn.Linear(32, 48)}, "it has 4 linear maps, not 2 or 3"),
        ({"gate_proj": nn.Identity(), "up_proj": nn.Identity()}, "it has 1 linear maps"),
    ],
)
def test_maps_that_do_not_fit(maps: dict[str, nn.Module], words: str) -> None:
    _refused(_Odd(_gated, **maps), words)


def test_interleaved_rows_are_not_gate_then_up() -> None:
    model = build("phi3")
    mlp: Any = model.get_submodule("model.layers.0.mlp")
    assert read(model)[0].fused

    class Interleaved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj, self.down_proj = mlp.gate_up_proj, mlp.down_proj

        def forward(self, x: Tensor) -> Tensor:
            both = self.gate_up_proj(x)
            return self.down_proj(both[..., ::2].sigmoid() * both[..., 1::2])

    anatomy = Anatomy.of(model)
    model.get_submodule("model.layers.0").mlp = Interleaved()
    with pytest.raises(PlanError, match="more than its own rows"):
        feed_forwards(model, anatomy)
