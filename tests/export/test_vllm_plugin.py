"""vLLM says of planned folders what the planned model says; the rest needs no vLLM."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.export import engines
from tests.export.kit import of_plan
from torch import nn
from transformers import AutoConfig, LlamaConfig

from skimp.export.target import Product
from skimp.export.verify import verify
from skimp.export.vllm_plugin import model as inside
from skimp.export.vllm_plugin.families import STOCK
from skimp.export.vllm_plugin.register import config_reader
from skimp.export.vllm_plugin.target import TARGET
from skimp.export.write import Refused, export
from skimp.models import carve
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

PYTHON = "SKIMP_VLLM_PYTHON"
SIZE, WIDTH = 8, 6


class Norm(nn.Module):
    """As vLLM's: adds to the residual stream, then normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(SIZE))

    def forward(self, states: Any, residual: Any = None) -> Any:
        added = states if residual is None else states + residual
        normed = added * torch.rsqrt(added.pow(2).mean(-1, keepdim=True)) * self.weight
        return normed if residual is None else (normed, added)


class Map(nn.Module):
    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(made, given))
        self.register_parameter("bias", None)
        self.output_size, self.params_dtype, self.weight_loader = made, torch.float32, print


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.o_proj = Map(SIZE, SIZE)
        self.mlp = nn.Module()
        self.mlp.down_proj = Map(width, SIZE)
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()


def settings(*kept: dict[str, Any], biases: tuple[str, ...] = (), devices: int = 1) -> Any:
    layout = {
        "layers": "model.layers",
        "attention": {"modules": ["self_attn"], "before": ["input_layernorm"], "after": []},
        "ffn": {"modules": ["mlp"], "before": ["post_attention_layernorm"], "after": []},
        "kept": [{"source": 0, "attention": "keep", "ffn": "keep", **entry} for entry in kept],
        "biases": biases,
    }
    config = SimpleNamespace(hidden_size=SIZE, intermediate_size=WIDTH, skimp={"layout": layout})
    names = [f"model.layers.{n}.self_attn.attn" for n in (0, 1, 10)]
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_config=config),
        compilation_config=SimpleNamespace(static_forward_context=dict.fromkeys(names)),
        parallel_config=SimpleNamespace(tensor_parallel_size=devices),
    )


def carved(place: int, given: Any) -> Any:
    def build(prefix: str) -> nn.Module:
        assert prefix == f"model.layers.{place}"
        return Layer(given.model_config.hf_config.intermediate_size)

    return inside.carved(build, f"model.layers.{place}", given)


def test_dropped_attention_has_no_cache() -> None:
    given = settings({}, {"attention": "linear:2"})
    layer = carved(1, given)
    assert isinstance(layer.self_attn, carve.Linear)
    assert isinstance(layer.input_layernorm, Norm)
    assert list(given.compilation_config.static_forward_context) == [
        "model.layers.0.self_attn.attn",
        "model.layers.10.self_attn.attn",
    ]
    assert not any(weight.requires_grad for weight in layer.self_attn.parameters())


@pytest.mark.parametrize("fill", ["zero", "constant"])
def test_a_norm_that_nothing_reads_still_adds(fill: str) -> None:
    layer = carved(0, settings({"ffn": fill}))
    states, residual = torch.randn(2, 3, SIZE)
    first, second = layer.post_attention_layernorm(states, residual)
    assert torch.equal(first, states + residual) and torch.equal(second, first)
    assert torch.equal(layer.input_layernorm.weight, carved_weight(layer))
    assert layer.mlp(first).shape == first.shape


def carved_weight(layer: Any) -> Any:
    assert isinstance(layer.input_layernorm, Norm), "the norm of what is kept stays"
    return layer.input_layernorm.weight


def test_the_first_layer_has_no_residual_yet() -> None:
    states = torch.randn(3, SIZE)
    assert inside.Sum()(states) is states


def test_an_ff_is_built_as_wide_as_it_is_left() -> None:
    given = settings({"neurons": {"width": 4}}, {})
    assert carved(0, given).mlp.down_proj.weight.shape == (SIZE, 4)
    assert carved(1, given).mlp.down_proj.weight.shape == (SIZE, WIDTH)
    with pytest.raises(ValueError, match=r"model\.layers\.0.*4 neurons.*3 devices"):
        carved(0, settings({"neurons": {"width": 4}}, devices=3))


def test_biases_of_a_repair_have_a_place_or_vllm_drops_them_silently() -> None:
    paths = ("model.layers.1.mlp.down_proj", "model.layers.10.self_attn.o_proj")
    given = settings({}, {}, biases=paths)
    layer = carved(1, given)
    assert layer.mlp.down_proj.bias.shape == (SIZE,)
    assert layer.mlp.down_proj.bias.weight_loader is layer.mlp.down_proj.weight_loader
    assert layer.self_attn.o_proj.bias is None


def test_make_layers_is_given_back_after_an_error() -> None:
    def make(count: int, build: Any, prefix: str) -> Any:
        return 0, count, nn.ModuleList(build(prefix=f"{prefix}.{n}") for n in range(count))

    module = SimpleNamespace(make_layers=make)
    given = settings({"ffn": "zero"})
    with pytest.raises(RuntimeError), inside._carving(module, given):
        *_, layers = module.make_layers(1, lambda prefix: Layer(WIDTH), "model.layers")
        assert isinstance(layers[0].mlp, carve.Zero)
        raise RuntimeError
    assert module.make_layers is make


def test_a_class_that_is_none_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="SkimpNothing"):
        getattr(inside, "SkimpNothing")  # noqa: B009


def test_configs_are_read_as_the_familys_own(tmp_path: Path) -> None:
    with engines.planned("llama", "mean") as made:
        export(made, TARGET, "f32", tmp_path / "out")
    data = json.loads((tmp_path / "out" / "config.json").read_text())
    assert data["model_type"] == "skimp_llama"
    reader = config_reader("llama", STOCK["llama"])
    assert reader.model_type == "skimp_llama"
    found = reader.from_dict(data)
    assert type(found) is LlamaConfig
    assert found.model_type == "llama"
    assert found.architectures == ["SkimpLlamaForCausalLM"]
    assert found.skimp["layout"]["kept"] == data["skimp"]["layout"]["kept"]
    assert not hasattr(found, "auto_map")


def test_every_family_names_a_config_of_transformers() -> None:
    for family, stock in STOCK.items():
        assert config_reader(family, stock).model_type == f"skimp_{family}"
        assert AutoConfig.for_model(family).model_type == family


def dense(family: str, **values: Any) -> tuple[Any, Anatomy]:
    made = engines.model(family, **values)
    return made, Anatomy.of(made)


@pytest.mark.parametrize(
    ("family", "values", "form", "field"),
    [
        ("olmo2", {}, "f32", "model"),
        ("llama", {"hidden_act": "gelu"}, "f32", "hidden_act"),
        ("gemma2", {}, "f16", "--format"),
        ("qwen3", {"attention_bias": True}, "f32", "attention_bias"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
            "f32",
            "layer_types",
        ),
    ],
)
def test_what_vllm_would_get_wrong_is_refused(
    family: str, values: dict[str, Any], form: str, field: str, tmp_path: Path
) -> None:
    made, anatomy = dense(family, **values)
    with (
        of_plan(made, anatomy, Plan.empty(anatomy)) as product,
        pytest.raises(Refused, match=field),
    ):
        export(product, TARGET, form, tmp_path / "out")


def test_widths_are_told_to_who_runs_on_several_devices() -> None:
    with engines.planned("llama", "zero", narrow=True) as made:
        assert "112" in TARGET.loading(made, "f32")
    with engines.planned("llama", "zero") as made:
        assert "tensor-parallel" not in TARGET.loading(made, "f32")


def check(made: Product, form: str, folder: Path, prompts: int) -> None:
    python = engines.interpreter(PYTHON)
    written = export(made, TARGET, form, folder)
    found = verify(made, TARGET, written, python=python, prompts=prompts)
    assert found.passed, found.sentence


@pytest.mark.parametrize("family", STOCK)
@pytest.mark.parametrize("fill", ["mean", "linear:8", "linear:full"])
def test_vllm_says_what_the_planned_model_says(family: str, fill: str, tmp_path: Path) -> None:
    engines.interpreter(PYTHON)
    with engines.planned(family, fill, narrow=fill == "linear:8") as made:
        check(made, "f32", tmp_path / "out", prompts=6)


def test_vllm_in_bfloat16(tmp_path: Path) -> None:
    engines.interpreter(PYTHON)
    with engines.planned("qwen3", "zero") as made:
        check(made, "bf16", tmp_path / "out", prompts=6)
