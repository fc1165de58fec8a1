"""The tensors of the file: their names, number formats and the order of their rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skimp.errors import ExportError
from skimp.export.gguf import blocks, rope
from skimp.export.gguf.blocks import Block, Square
from skimp.export.shaped import Affine, Attention, FeedForward, layers
from skimp.export.target import Product

QUANTIZED = 32
"""Weights of a row that share a scale, in the quantized formats written here."""


@dataclass(frozen=True)
class Layout:
    """How a model is laid out in the file.

    `architecture`: "deci", or a plain one where nothing is missing. `turned`: whether rows of
    queries and keys stand in llama.cpp's order of rotation. `attends` and `widths`: one entry a
    block, of (heads, KV heads) and neurons.
    """

    architecture: str
    turned: bool
    attends: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]


_PLAIN = {
    # model type: architecture, whether rows are turned, biases it reads
    "llama": ("llama", True, frozenset[str]()),
    "mistral": ("llama", True, frozenset[str]()),
    "phi3": ("llama", True, frozenset[str]()),
    "qwen2": ("qwen2", False, frozenset(("attn_q", "attn_k", "attn_v"))),
}


def lay_out(product: Product, form: str) -> Layout:
    """A plain architecture is taken where nothing is missing: more programs read those."""
    config = product.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attends, widths, biases = [], [], set[str]()
    plain, turned, read = _PLAIN.get(product.dense.model_type, ("", True, frozenset[str]()))
    found = (_fitted(block, form) for block in _blocks(product))
    for block in found:
        present = {Attention: (heads, kv_heads), Square: (heads, 0), type(None): (0, 0)}
        attends.append(present[type(block.attention)])
        widths.append(blocks.width(block.ffn))
        biases |= {name for name, affine in _maps(block) if affine.bias is not None}
    alike = len(set(widths)) == 1 and set(attends) == {(heads, kv_heads)}
    if not plain or not alike or not biases <= read:
        plain, turned = "deci", True
    return Layout(plain, turned, tuple(attends), tuple(widths))


def tensors(product: Product, form: str, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of everything, a tied head once; one at a time, in the file's order."""
    model, config = product.model, product.config
    yield "token_embd.weight", model.model.embed_tokens.weight.detach()
    yield "output_norm.weight", model.model.norm.weight.detach()
    if not config.tie_word_embeddings:
        yield "output.weight", model.lm_head.weight.detach()
    divisors = rope.divisors(config)
    if divisors is not None:
        yield "rope_freqs.weight", divisors
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    turn = heads if layout.turned else {}
    for index, block in enumerate(_blocks(product)):
        fitted = _fitted(block, form)
        for name, weight in _norms(fitted):
            yield f"blk.{index}.{name}.weight", weight
        for name, affine in _maps(fitted):
            if name in turn:
                affine = _turned(affine, turn[name])
            yield f"blk.{index}.{name}.weight", affine.weight
            if affine.bias is not None:
                yield f"blk.{index}.{name}.bias", affine.bias


def write_tensors(writer: Any, product: Product, form: str, layout: Layout, path: Path) -> None:
    """Write the header that `writer` holds and every tensor to `path`, one in memory at a time."""
    import gguf

    describe = partial(tensors, product, form, layout)
    for name, weight in describe():
        kind = gguf.GGMLQuantizationType[number_format(name, weight, form, product)]
        shape = tuple(weight.shape)
        size = int(np.prod(gguf.quant_shape_to_byte_shape(shape, kind), dtype=np.int64))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, weight in describe():
        kind = gguf.GGMLQuantizationType[number_format(name, weight, form, product)]
        writer.write_tensor_data(_packed(name, weight, kind))


def number_format(name: str, weight: Tensor, form: str, product: Product) -> str:
    """The ggml type of a tensor in a file of format `form`.

    Vectors are float32, as llama.cpp wants them. Rows that do not divide into blocks stay in
    float16, and the head has 8 bits where the rest has 4: llama.cpp's own quantizer does likewise.
    """
    if weight.dim() == 1:
        return "F32"
    if form not in ("Q8_0", "Q4_0"):
        return form
    if weight.shape[-1] % QUANTIZED:
        return "F16"
    head = "token_embd.weight" if product.config.tie_word_embeddings else "output.weight"
    return "Q8_0" if name == head else form


def for_neighbours(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key map [heads · D, …] for llama.cpp's rotation.

    transformers turns the pairs (i, i + D/2) of a head, llama.cpp's Llama the pairs (2i, 2i + 1).
    """
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _turned(affine: Affine, heads: int) -> Affine:
    bias = None if affine.bias is None else for_neighbours(affine.bias, heads)
    return Affine(for_neighbours(affine.weight, heads), bias)


def _blocks(product: Product) -> Iterator[Block]:
    return blocks.pack(layers(product), product.config.hidden_size)


def _norms(block: Block) -> Iterator[tuple[str, Tensor]]:
    if block.attention is not None:
        yield "attn_norm", block.attention.norm
    if block.ffn is not None:
        yield "ffn_norm", block.ffn.norm


def _maps(block: Block) -> Iterator[tuple[str, Affine]]:
    attention, ffn = block.attention, block.ffn
    if isinstance(attention, Attention):
        yield "attn_q", attention.query
        yield "attn_k", attention.key
        yield "attn_v", attention.value
        yield "attn_output", attention.output
    elif attention is not None:
        yield "attn_output", Affine(attention.weight, None)
    if ffn is not None:
        yield "ffn_gate", ffn.gate
        yield "ffn_up", ffn.up
        yield "ffn_down", ffn.down


def _fitted(block: Block, form: str) -> Block:
    """The block with its FF widened by neurons of zeros to whole blocks of quantized weights."""
    if block.ffn is None or form in ("F32", "F16", "BF16"):
        return block
    ffn = block.ffn
    more = -blocks.width(ffn) % QUANTIZED
    if not more:
        return block
    pad = torch.nn.functional.pad

    def rows(affine: Affine) -> Affine:
        bias = None if affine.bias is None else pad(affine.bias, (0, more))
        return Affine(pad(affine.weight, (0, 0, 0, more)), bias)

    down = Affine(pad(ffn.down.weight, (0, more)), ffn.down.bias)
    return Block(block.attention, FeedForward(ffn.norm, rows(ffn.gate), rows(ffn.up), down))


def _packed(name: str, weight: Tensor, kind: Any) -> np.ndarray:
    import gguf

    numbers = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    if kind.name == "F16" and np.abs(numbers).max() > np.finfo(np.float16).max:
        raise ExportError(
            f"--format: {name} holds weights up to {np.abs(numbers).max():.3g}, more than float16 "
            "can; take bf16."
        )
    return gguf.quantize(numbers, kind)
