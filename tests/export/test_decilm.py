"""DeciLM folders say what the planned model says, in blocks that stock engines can run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.cases import CASES
from tests.export.kit import of_plan, product
from tests.export.reading import run
from tests.families import SAMPLES
from transformers import AutoConfig

from skimp.export.decilm import TARGET
from skimp.export.target import Product
from skimp.export.verify import verify
from skimp.export.write import Refused, export
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan

TOKENS = torch.randint(2, 97, (11,), generator=torch.Generator().manual_seed(1))
SECTIONS = [(case, name) for case in CASES for name in CASES[case].hard(4)]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def check(made: Product, folder: Path) -> dict[str, Any]:
    export(made, TARGET, "f32", folder)
    with torch.no_grad():
        wanted = made.model(input_ids=TOKENS[None], use_cache=False).logits[0]
    assert (run(folder, TOKENS) - wanted).abs().max() < 1e-4
    return config_of(folder)


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased"])
@pytest.mark.parametrize(("case", "section"), SECTIONS)
def test_logits_are_the_planned_models(
    family: str, case: str, section: str, tmp_path: Path
) -> None:
    with product(family, case, section) as made:
        check(made, tmp_path / "out")


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tied", [False, True])
def test_other_families(family: str, case: str, tied: bool, tmp_path: Path) -> None:
    config = SAMPLES[family].config()
    config.sliding_window, config.tie_word_embeddings = None, tied
    config.layer_types = ["full_attention"] * 4
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) / max(weight.shape[-1], 2) ** 0.5
    anatomy = Anatomy.of(model)
    from tests.contract.cases import plan_for

    plan = plan_for(CASES[case], CASES[case].one(4, "first layer"), anatomy)
    with of_plan(model, anatomy, plan) as made:
        check(made, tmp_path / "out")


def test_windows_are_refused(tmp_path: Path) -> None:
    with product("qwen2", "drop-zero") as made, pytest.raises(Refused, match="sliding_window"):
        export(made, TARGET, "f32", tmp_path / "out")


def test_sublayers_that_are_gone_cost_nothing(tmp_path: Path) -> None:
    with product("llama", "drop-zero", "middle") as made:  # attention 1, FFs 1 and 2
        config = check(made, tmp_path / "out")
    blocks = config["block_configs"]
    # Attention 2 and FF 3 are of two layers, with attention 3 between: nothing to pack.
    assert [(b["attention"]["no_op"], b["ffn"]["no_op"]) for b in blocks] == [
        (False, False),
        (False, True),
        (False, False),
    ]
    assert not config["attention_bias"] and not config["mlp_bias"]


def test_what_runs_before_the_first_attention_is_in_the_embedding(tmp_path: Path) -> None:
    with product("llama", "drop-mean", "first attention") as made:
        config = check(made, tmp_path / "out")
        parameters = made.anatomy.parameters
        said = TARGET.loading(made, "f32")
    assert config["num_hidden_layers"] == 3
    from safetensors.torch import load_file

    written = sum(each.numel() for each in load_file(tmp_path / "out/model.safetensors").values())
    assert written < parameters
    assert "constants, FF 0" in said


def test_tied_embeddings_stay(tmp_path: Path) -> None:
    with product("llama-tied-biased", "drop-mean", "first attention") as made:
        check(made, tmp_path / "out")
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights["model.embed_tokens.weight"], made.model.model.embed_tokens.weight)
    assert not weights["model.layers.0.self_attn.o_proj.weight"].any()
    assert weights["model.layers.0.self_attn.o_proj.bias"].any()


def test_linear_fills_are_ffs_of_their_rank(tmp_path: Path) -> None:
    with product("llama", "drop-linear:4", "middle") as made:
        config = check(made, tmp_path / "out")
    widths = [b["ffn"].get("intermediate_size") for b in config["block_configs"]]
    assert widths == [48, 4, 4, 4, 48]
    assert config["mlp_bias"]
    assert not any("ffn_mult" in b["ffn"] for b in config["block_configs"])


def test_other_engines_are_told_widths_only_where_they_are_right(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = SAMPLES["llama"].config()
    config.intermediate_size = 512
    model = AutoModelForCausalLM.from_config(config).eval()
    anatomy = Anatomy.of(model)
    plan = Plan.empty(anatomy).with_section("drop", {"ffn": [1], "fill": "zero"})
    with of_plan(model, anatomy, plan) as made:
        told = check(made, tmp_path / "out")
        assert "SGLang and TensorRT-LLM have the same class" in TARGET.loading(made, "f32")
    for block in told["block_configs"]:
        if not block["ffn"]["no_op"]:
            assert int(2 * block["ffn"]["ffn_mult"] * 32 / 3 + 1e-6) == 512
    with product("llama", "drop-zero") as made:
        assert "refuse this folder" in TARGET.loading(made, "f32")


@pytest.mark.parametrize(("form", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_formats(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    with product("llama", "drop-linear:4") as made:
        export(made, TARGET, form, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {each.dtype for each in weights.values()} == {dtype}
    assert config_of(tmp_path / "out")["dtype"] == str(dtype).removeprefix("torch.")


def test_the_config_loads_as_engines_read_it(tmp_path: Path) -> None:
    with product("llama", "experts-calibrated", "layer by layer") as made:
        export(made, TARGET, "f32", tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert config.model_type == "nemotron-nas"
    assert config.architectures == ["DeciLMForCausalLM"]
    block = config.block_configs[1]
    assert block.attention.n_heads_in_group == 2 and not block.ffn.no_op
    assert block.ffn.intermediate_size == 1
    assert not hasattr(block.ffn, "ffn_mult")
    assert config.rope_parameters["rope_theta"] == 10000.0
    config.save_pretrained(tmp_path / "again")
    again = config_of(tmp_path / "again")
    assert again["block_configs"] == config_of(tmp_path / "out")["block_configs"]


PYTHON = os.environ.get("SKIMP_VLLM_PYTHON")


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="SKIMP_VLLM_PYTHON names no interpreter with vLLM")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", ["drop-mean", "drop-linear:4", "experts-calibrated"])
def test_vllm_says_the_same(case: str, tied: bool, tmp_path: Path) -> None:
    from tests.contract.cases import plan_for
    from transformers import AutoModelForCausalLM

    config = SAMPLES["llama"].config()
    # vLLM's kernels for CPUs know heads of 32 and more.
    config.hidden_size, config.head_dim, config.tie_word_embeddings = 128, 32, tied
    model = AutoModelForCausalLM.from_config(config).float().eval()
    anatomy = Anatomy.of(model)
    plan = plan_for(CASES[case], CASES[case].one(4, "first attention"), anatomy)
    with of_plan(model, anatomy, plan) as made:
        written = export(made, TARGET, "f32", tmp_path / "out")
        found = verify(made, TARGET, written, python=Path(str(PYTHON)), prompts=8, new=8)
    assert found.passed, found.sentence
