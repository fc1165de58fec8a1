"""The GGUF file holds the model's weights, what is left out is out, and nothing else is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.export.gguf_kit import drop, model, planned, product, written
from tests.families import SAMPLES

from skimp.errors import ExportError
from skimp.export.gguf.target import TARGET, write
from skimp.export.gguf.tensors import for_neighbours
from skimp.export.write import obstacles

gguf = pytest.importorskip("gguf")

_PLAIN = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _theirs(name: str) -> str:
    """transformers' name of a tensor."""
    if not name.startswith("blk."):
        return _PLAIN[name]
    _, layer, part, what = name.split(".")
    return f"model.layers.{layer}.{_PLAIN[part]}.{what}"


def _in_place(tensors: dict[str, Any]) -> list[str]:
    """Those whose rows keep their order."""
    return [name for name in tensors if "attn_q" not in name and "attn_k" not in name]


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_weights_come_back_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e3}
    dense = model(tie_word_embeddings=tied, rope_parameters=rope).bfloat16()
    metadata, tensors = written(product(dense), tmp_path, "bf16")
    state = dense.state_dict()
    for name in _in_place(tensors):
        assert np.array_equal(tensors[name], state[_theirs(name)].float().numpy()), name
    # Nothing is left out, and a tied head is not written twice.
    assert len(tensors) == len(state) - tied
    assert metadata["llama.rope.freq_base"] == 5e3
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert metadata["general.architecture"] == "llama"
    sizes = ("block_count", "embedding_length", "feed_forward_length", "vocab_size")
    assert [metadata[f"llama.{size}"] for size in sizes] == [4, 64, 96, 97]
    heads = ("head_count", "head_count_kv", "key_length", "value_length")
    assert [metadata[f"llama.attention.{head}"] for head in heads] == [4, 2, 16, 16]


@pytest.mark.parametrize(("form", "step"), [("q8_0", 1 / 127), ("q4_0", 1 / 8)])
def test_quantized_weights_are_off_by_a_step_at_most(
    tmp_path: Path, form: str, step: float
) -> None:
    dense = model().bfloat16()
    _, tensors = written(product(dense), tmp_path, form)
    state = dense.state_dict()
    for part in ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        name = f"blk.1.{part}.weight"
        before = state[_theirs(name)].float().numpy()
        blocks, back = before.reshape(-1, 32), tensors[name].reshape(-1, 32)
        largest = np.abs(blocks).max(1, keepdims=True)
        # A block's scale is a share of its largest weight, itself rounded to float16. With 4 bits
        # one end of the range is a step short.
        ends = 0.5 if form == "q8_0" else 1
        assert (np.abs(back - blocks) <= largest * (ends * step + 2**-11)).all(), name
        assert not np.array_equal(back, blocks), name
    norm = tensors["blk.1.attn_norm.weight"]
    assert np.array_equal(norm, state["model.layers.1.input_layernorm.weight"].float().numpy())


def test_the_head_keeps_8_bits_where_the_rest_has_4(tmp_path: Path) -> None:
    for tied, name in ((False, "output.weight"), (True, "token_embd.weight")):
        write(product(model(tie_word_embeddings=tied)), "q4_0", tmp_path / "m.gguf")
        kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
        assert kinds[name].name == "Q8_0"
        assert kinds["blk.0.attn_output.weight"].name == "Q4_0"


def test_ffs_are_widened_to_whole_blocks_by_neurons_that_say_nothing(tmp_path: Path) -> None:
    dense = model(intermediate_size=80, mlp_bias=True)
    metadata, tensors = written(product(dense), tmp_path, "q8_0")
    assert metadata["deci.feed_forward_length"] == [96] * 4
    for name in ("ffn_gate", "ffn_up"):
        assert tensors[f"blk.0.{name}.weight"].shape == (96, 64)
        assert not tensors[f"blk.0.{name}.weight"][80:].any()
        assert not tensors[f"blk.0.{name}.bias"][80:].any()
    assert not tensors["blk.0.ffn_down.weight"][:, 80:].any()
    plain, _ = written(product(model(intermediate_size=80)), tmp_path, "f32")
    assert plain["llama.feed_forward_length"] == 80


@pytest.mark.parametrize("form", TARGET.formats)
def test_rows_that_do_not_divide_into_blocks_are_refused(form: str) -> None:
    narrow = product(model(hidden_size=48), python=Path("nowhere"))
    found = [each.field for each in obstacles(narrow, TARGET, form)]
    assert ("hidden_size" in found) == form.startswith("q")


def test_queries_and_keys_are_reordered_each_by_its_own_number_of_heads(tmp_path: Path) -> None:
    dense = model(attention_bias=True).bfloat16()
    _, tensors = written(product(dense), tmp_path, "bf16")
    for part, heads in (("attn_q", 4), ("attn_k", 2)):
        for what in ("weight", "bias"):
            rows = dense.state_dict()[_theirs(f"blk.0.{part}.{what}")].float()
            expected = for_neighbours(rows, heads)
            assert np.array_equal(tensors[f"blk.0.{part}.{what}"], expected.numpy())
            assert not torch.equal(expected, rows)


def test_scores_are_the_same_under_the_other_rotation() -> None:
    heads, width, hidden = 3, 8, 5
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(heads * width, hidden, generator=generator) for _ in range(2))
    x, y = (torch.randn(hidden, generator=generator) for _ in range(2))
    order = torch.arange(width)
    halves = torch.stack((order[: width // 2], order[width // 2 :]), dim=1)
    neighbours = order.reshape(-1, 2)
    speeds = 10000.0 ** (-torch.arange(width // 2) / (width // 2))

    def scores(turn: Any, pairs: torch.Tensor) -> torch.Tensor:
        queries, keys = ((turn(w) @ v).view(heads, width) for w, v in ((query, x), (key, y)))
        return torch.stack(
            [
                _turn(q, pairs, 9 * speeds) @ _turn(k, pairs, 4 * speeds)
                for q, k in zip(queries, keys, strict=True)
            ]
        )

    expected = scores(lambda weight: weight, halves)
    torch.testing.assert_close(scores(lambda w: for_neighbours(w, heads), neighbours), expected)
    # Without the reordering llama.cpp would turn the wrong pairs.
    assert not torch.allclose(scores(lambda weight: weight, neighbours), expected, rtol=0.1)


def _turn(x: torch.Tensor, pairs: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of entries of `x` [D] by its angle; pairs [D / 2, 2]."""
    turned = x.clone()
    a, b = x[pairs[:, 0]], x[pairs[:, 1]]
    turned[pairs[:, 0]] = a * angles.cos() - b * angles.sin()
    turned[pairs[:, 1]] = a * angles.sin() + b * angles.cos()
    return turned


def test_a_block_without_attention_holds_its_ff_alone(tmp_path: Path) -> None:
    with planned(sections=drop(attention=(1, 2))) as given:
        metadata, tensors = written(given, tmp_path, "f32")
        state = given.model.state_dict()
    assert metadata["general.architecture"] == "deci"
    assert metadata["deci.attention.head_count"] == [4, 0, 0, 4]
    assert metadata["deci.attention.head_count_kv"] == [2, 0, 0, 2]
    assert metadata["deci.feed_forward_length"] == [96] * 4
    assert len(tensors) == len(state)
    for name in _in_place(tensors):
        assert np.array_equal(tensors[name], state[_theirs(name)].numpy()), name


def test_whole_layers_leave_a_plain_llama(tmp_path: Path) -> None:
    with planned(sections=drop(attention=(0, 2), ffn=(0, 2))) as given:
        metadata, tensors = written(given, tmp_path, "f32")
        assert len(tensors) == len(given.model.state_dict())
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 2


def test_an_ff_moves_in_behind_attention_that_lost_its_own(tmp_path: Path) -> None:
    with planned(sections=drop(attention=(2,), ffn=(1,))) as given:
        metadata, tensors = written(given, tmp_path, "f32")
        up = given.model.model.layers[2].mlp.up_proj.weight
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 3
    assert np.array_equal(tensors["blk.1.ffn_up.weight"], up.detach().numpy())


def test_narrower_ffs_have_widths_of_their_own(tmp_path: Path) -> None:
    section = {"keep": [1.0, 0.5, 0.25, 1.0], "scope": "calibrated"}
    with planned(sections={"experts": section}) as given:
        metadata, tensors = written(given, tmp_path, "f32")
    assert metadata["deci.feed_forward_length"] == [96, 48, 24, 96]
    assert tensors["blk.2.ffn_down.weight"].shape == (64, 24)


def test_a_mean_is_a_bias_of_what_was_written_before(tmp_path: Path) -> None:
    with planned(sections=drop(attention=(2,), fill="mean")) as given:
        metadata, tensors = written(given, tmp_path, "f32")
        bias = given.model.model.layers[1].mlp.down_proj.bias
    assert metadata["general.architecture"] == "deci"
    assert np.array_equal(tensors["blk.1.ffn_down.bias"], bias.detach().numpy())


def test_qwen2_is_written_as_such_while_nothing_is_missing(tmp_path: Path) -> None:
    metadata, tensors = written(product(model("qwen2")), tmp_path, "f32")
    assert metadata["general.architecture"] == "qwen2"
    state = model("qwen2").state_dict()
    for name, array in tensors.items():
        assert np.array_equal(array, state[_theirs(name)].numpy()), name
    with planned("qwen2", drop(attention=(1,))) as given:
        metadata, tensors = written(given, tmp_path, "f32")
    assert metadata["general.architecture"] == "deci"
    bias = state["model.layers.0.self_attn.k_proj.bias"]
    assert np.array_equal(tensors["blk.0.attn_k.bias"], for_neighbours(bias, 2).numpy())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope"),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "beta_fast": 16,
                    "original_max_position_embeddings": 32,
                }
            },
            "rope",
        ),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    settings: dict[str, Any], field: str
) -> None:
    (found,) = obstacles(product(model(**settings)), TARGET, "f32")
    assert found.field.startswith(field)


@pytest.mark.parametrize("family", ["gemma2", "opt", "mistral"])
def test_other_families_and_short_windows_are_refused(family: str) -> None:
    assert obstacles(product(SAMPLES[family].build()), TARGET, "f32")


def test_weights_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    dense = model()
    with torch.no_grad():
        dense.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"blk\.1\.ffn_up\.weight holds weights up to 1e\+05"):
        write(product(dense), "f16", tmp_path / "m.gguf")


def test_k_quants_without_llama_cpp_are_refused_with_the_remedy() -> None:
    given = product(model(), python=Path("/nowhere/python"))
    (found,) = obstacles(given, TARGET, "q4_k_m")
    assert "--engine-python" in str(found)
