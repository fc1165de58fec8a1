"""A Llama model as a GGUF file, for timing llama.cpp on the very weights the others run.

Tensors are written one at a time, so the file costs no second model in memory. It has no tokenizer
(llama.cpp then makes up names for the tokens), because engines are given token ids here.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from skimp.errors import SkimpError

FORMATS = ("BF16", "Q8_0")
"""The number formats of matrices that can be written, by their names in ggml."""

_BLOCK = 32  # weights of a row that share a scale in Q8_0
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Any, path: Path, form: str) -> None:
    """Write `model` to `path`, its matrices in `form`, one of FORMATS.

    bfloat16 weights come out bit for bit in BF16. Norms are float32, as llama.cpp wants them.

    Raises:
        SkimpError: the model is no plain Llama, or its widths do not divide into Q8_0's blocks.
        ModuleNotFoundError: the gguf package is not installed.
    """
    import gguf

    check(model.config, form)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, model.config)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{form}"])
    for name, weight in _tensors(model):
        kind = gguf.GGMLQuantizationType[form if weight.dim() > 1 else "F32"]
        shape = tuple(weight.shape)
        size = prod(gguf.quant_shape_to_byte_shape(shape, kind))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, weight in _tensors(model):
        kind = gguf.GGMLQuantizationType[form if weight.dim() > 1 else "F32"]
        writer.write_tensor_data(gguf.quantize(weight.float().numpy(), kind))
    writer.close()


def check(config: Any, form: str) -> None:
    """Raise SkimpError unless a model of this config comes out whole in the format."""
    rope = config.rope_parameters or {}
    widths = (config.hidden_size, config.intermediate_size)
    scaling = rope.get("rope_type", "default")
    wrong = {
        f"a {config.model_type} model": config.model_type != "llama",
        f"rotary frequencies scaled by {scaling}": scaling != "default",
        "biases": config.attention_bias or config.mlp_bias,
        f"rows that are no multiple of {_BLOCK} in Q8_0": (
            form == "Q8_0" and any(width % _BLOCK for width in widths)
        ),
    }
    for what, present in wrong.items():
        if present:
            raise SkimpError(f"this GGUF export cannot write {what}; leave llama.cpp out.")


def for_neighbours(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection [heads · D, H] for llama.cpp's rotation.

    transformers turns the pairs (i, i + D/2) of a head, llama.cpp's Llama the pairs (2i, 2i + 1).
    """
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def _describe(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name in the file, weight) of everything, a tied head once."""
    config, inner = model.config, model.model
    yield "token_embd.weight", inner.embed_tokens.weight.detach()
    yield "output_norm.weight", inner.norm.weight.detach()
    if not config.tie_word_embeddings:
        yield "output.weight", model.lm_head.weight.detach()
    turned = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for index, layer in enumerate(inner.layers):
        for path, name in (_NORMS | _PROJECTIONS).items():
            weight = layer.get_submodule(path).weight.detach()
            if name in turned:
                weight = for_neighbours(weight, turned[name])
            yield f"blk.{index}.{name}.weight", weight
