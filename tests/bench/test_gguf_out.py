"""The GGUF file holds the model's weights, and its rotation turns the same pairs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench.peering.gguf_out import check, for_neighbours, write_gguf
from tests.models import model_files as files

from skimp.errors import SkimpError

gguf = pytest.importorskip("gguf")

_PLAIN = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm": "input_layernorm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _written(model: Any, path: Path, form: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write and read back: metadata values, and tensors as arrays of float32."""
    write_gguf(model, path / "m.gguf", form)
    reader = gguf.GGUFReader(path / "m.gguf")
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return metadata, tensors


def _theirs(name: str) -> str:
    """transformers' name of a tensor whose rows keep their order."""
    if not name.startswith("blk."):
        return _PLAIN[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_PLAIN[part]}.weight"


@pytest.mark.parametrize("tied", [True, False])
def test_bf16_weights_come_back_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    model = files.llama(tie_word_embeddings=tied, rope_parameters={"rope_theta": 5e3})
    model = model.bfloat16()
    metadata, tensors = _written(model, tmp_path, "BF16")
    state = model.state_dict()
    kept = [name for name in tensors if "attn_q" not in name and "attn_k" not in name]
    for name in kept:
        assert np.array_equal(tensors[name], state[_theirs(name)].float().numpy()), name
    # Nothing is left out, and a tied head is not written twice.
    assert len(tensors) == len(state) - tied
    assert metadata["llama.rope.freq_base"] == 5e3
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert metadata["general.architecture"] == "llama"
    sizes = ("block_count", "embedding_length", "feed_forward_length", "vocab_size")
    assert [metadata[f"llama.{size}"] for size in sizes] == [2, 32, 48, len(files.vocabulary())]
    heads = ("head_count", "head_count_kv", "key_length", "value_length")
    assert [metadata[f"llama.attention.{head}"] for head in heads] == [4, 2, 8, 8]


def test_q8_is_off_by_no_more_than_half_a_step(tmp_path: Path) -> None:
    model = files.llama(intermediate_size=64).bfloat16()
    _, tensors = _written(model, tmp_path, "Q8_0")
    state = model.state_dict()
    for part in ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        name = f"blk.1.{part}.weight"
        before = state[_theirs(name)].float().numpy()
        blocks, back = before.reshape(-1, 32), tensors[name].reshape(-1, 32)
        largest = np.abs(blocks).max(1, keepdims=True)
        # A block's scale is its largest weight over 127, itself rounded to float16.
        assert (np.abs(back - blocks) <= largest * (0.5 / 127 + 2**-11)).all(), name
        assert not np.array_equal(back, blocks), name
    norm = tensors["blk.1.attn_norm.weight"]
    assert np.array_equal(norm, state["model.layers.1.input_layernorm.weight"].float().numpy())


def _turn(x: torch.Tensor, pairs: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of entries of `x` [D] by its angle; pairs [D / 2, 2]."""
    turned = x.clone()
    a, b = x[pairs[:, 0]], x[pairs[:, 1]]
    turned[pairs[:, 0]] = a * angles.cos() - b * angles.sin()
    turned[pairs[:, 1]] = a * angles.sin() + b * angles.cos()
    return turned


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


def test_queries_and_keys_are_reordered_each_by_its_own_number_of_heads(tmp_path: Path) -> None:
    model = files.llama().bfloat16()
    _, tensors = _written(model, tmp_path, "BF16")
    state = model.state_dict()
    for part, theirs, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        weight = state[f"model.layers.0.self_attn.{theirs}.weight"].float()
        expected = for_neighbours(weight, heads)
        assert np.array_equal(tensors[f"blk.0.{part}.weight"], expected.numpy())
        assert not torch.equal(expected, weight)


@pytest.mark.parametrize(
    ("settings", "form", "message"),
    [
        ({"attention_bias": True}, "BF16", "biases"),
        ({"model_type": "qwen2"}, "BF16", "a qwen2 model"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "BF16", "frequencies scaled by llama3"),
        ({"intermediate_size": 48}, "Q8_0", "no multiple of 32 in Q8_0"),
    ],
)
def test_what_would_come_out_wrong_is_refused(
    settings: dict[str, Any], form: str, message: str
) -> None:
    plain = {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_size": 64,
        "intermediate_size": 96,
    }
    check(SimpleNamespace(**plain), form)
    with pytest.raises(SkimpError, match=message):
        check(SimpleNamespace(**(plain | settings)), form)
