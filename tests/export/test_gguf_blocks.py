"""Whatever is left out or replaced, llama.cpp's rules for blocks compute the planned layers."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from skimp.export.gguf.blocks import Block, Square, pack
from skimp.export.shaped import Affine, Attention, FeedForward, Replaced, ShapedLayer

_HIDDEN, _WIDTH = 128, 8
_KINDS = ("keep", "none", "constant", "full", "low")


def _affine(random: torch.Generator, out: int, into: int, *, bias: bool = False) -> Affine:
    weight = torch.randn(out, into, generator=random, dtype=torch.float64) / into**0.5
    made = torch.randn(out, generator=random, dtype=torch.float64) if bias else None
    return Affine(weight, made)


def _branch(kind: str, place: str, random: torch.Generator) -> Any:
    norm = 1 + torch.rand(_HIDDEN, generator=random, dtype=torch.float64)
    square = _affine(random, _HIDDEN, _HIDDEN, bias=True)
    if kind == "none":
        return None
    if kind == "constant":
        return Replaced(None, square)
    if kind == "full":
        return Replaced(norm, square)
    if kind == "low":
        up, down = _affine(random, _HIDDEN, 3).weight, _affine(random, 3, _HIDDEN).weight
        return Replaced(norm, Affine(up @ down, square.bias), 3, (down, up))
    if place == "attention":
        maps = (_affine(random, _HIDDEN, _HIDDEN) for _ in range(4))
        return Attention(norm, *maps)
    inward = (_affine(random, _WIDTH, _HIDDEN) for _ in range(2))
    return FeedForward(norm, *inward, _affine(random, _HIDDEN, _WIDTH))


def _through(affine: Affine, x: Tensor) -> Tensor:
    y = affine.weight.double() @ x
    return y if affine.bias is None else y + affine.bias.double()


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / x.square().mean().sqrt() * weight.double()


def _output(branch: Any, x: Tensor) -> Tensor:
    """What a branch adds at one position; attention then sees its own value alone."""
    if branch is None:
        return torch.zeros_like(x)
    if isinstance(branch, Replaced):
        if branch.norm is None:
            assert branch.map.bias is not None
            return branch.map.bias
        return _through(branch.map, _normed(x, branch.norm))
    x = _normed(x, branch.norm)
    if isinstance(branch, Attention):
        return _through(branch.output, _through(branch.value, x))
    if isinstance(branch, Square):
        return branch.weight.double() @ x
    gate = torch.nn.functional.silu(_through(branch.gate, x))
    return _through(branch.down, gate * _through(branch.up, x))


def _as_llama_cpp(blocks: list[Block], x: Tensor) -> Tensor:
    """Its `deci` graph, with what it silently does to blocks it does not expect."""
    assert blocks[0].attention is not None  # sizes are read off the first block's heads
    assert blocks[-1].ffn is not None  # else it aborts
    for block in blocks:
        if block.ffn is None:
            continue  # attention is lost with it
        x = x + _output(block.attention, x)
        x = x + _output(block.ffn, x)
    return x


@given(
    st.lists(
        st.tuples(st.sampled_from(_KINDS), st.sampled_from(_KINDS)), min_size=1, max_size=5
    ).filter(lambda layers: any("none" not in layer for layer in layers)),
    st.integers(0, 9),
)
def test_blocks_compute_what_the_layers_do(layers: list[tuple[str, str]], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    shaped = [
        ShapedLayer(index, _branch(first, "attention", random), _branch(second, "ffn", random))
        for index, (first, second) in enumerate(layers)
    ]
    x = torch.randn(_HIDDEN, generator=random, dtype=torch.float64)
    expected = x
    for layer in shaped:
        expected = expected + _output(layer.attention, expected)
        expected = expected + _output(layer.ffn, expected)
    blocks = list(pack(shaped, _HIDDEN))
    torch.testing.assert_close(_as_llama_cpp(blocks, x), expected, rtol=1e-5, atol=1e-5)
    # No layer costs more than two blocks.
    assert len(blocks) <= 2 * len(layers)
    kept = sum(kind == "keep" for layer in layers for kind in layer[:1])
    assert sum(isinstance(block.attention, Attention) for block in blocks) == kept


def test_a_low_rank_is_not_multiplied_out() -> None:
    random = torch.Generator().manual_seed(0)
    layer = ShapedLayer(0, _branch("keep", "attention", random), _branch("low", "ffn", random))
    (block,) = pack([layer], _HIDDEN)
    assert block.ffn is not None
    assert block.ffn.up.weight.shape == (32, _HIDDEN)
