"""The layers that remain as llama.cpp's blocks of its `deci` architecture, which may lack parts.

A planned model is a row of branches, each adding to the residual stream: attention, FFs, fills. A
block of `deci` runs one of attention's kind and one FF behind it. Either may be absent, but not in
every place, and then something that adds nothing stands there instead:

- the first block must have heads, since sizes are read off it: a "linear attention" (heads but no
  KV heads: one matrix, no bias) of zeros stands there;
- an attention without an FF behind it is lost without a word, so an FF of zeros follows it.

Every fill is exact. A constant is a bias of whatever wrote last. A linear map is a linear
attention, or where its rank is low an FF whose gate stands still: silu(GATE) = 1.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skimp.export.shaped import Affine, Attention, FeedForward, Replaced, ShapedLayer

GATE = 1.2784645427610737951
"""Where silu is 1."""

NARROWEST = 32
"""Neurons of an FF that adds nothing or only a constant: a whole block of quantized weights."""


@dataclass(frozen=True)
class Square:
    """llama.cpp's linear attention: `weight` [d, d] times the normalised input, without a bias."""

    norm: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Block:
    """What one block of the file runs, its attention first."""

    attention: Attention | Square | None
    ffn: FeedForward | None


@dataclass(frozen=True)
class _Constant:
    value: Tensor


_Branch = Attention | Square | FeedForward | _Constant


def pack(layers: Iterable[ShapedLayer], hidden: int) -> Iterator[Block]:
    """The blocks, one at a time; `hidden` is the width of the residual stream.

    Branches keep their order, so a layer's FF may share its block with an earlier layer's attention
    where nothing stood between them.
    """
    block: Block | None = None
    for branch in _branches(layers):
        if isinstance(branch, _Constant):
            block = _plus(block, branch.value, hidden)
        elif isinstance(branch, FeedForward):
            if block is not None and block.ffn is not None:
                yield block
                block = Block(None, branch)
            else:
                block = Block(_first(hidden) if block is None else block.attention, branch)
        else:
            if block is not None:
                yield _ended(block, hidden)
            block = Block(branch, None)
    if block is not None:
        yield _ended(block, hidden)


def width(ffn: FeedForward | None) -> int:
    """Neurons of an FF; 0 where there is none."""
    return 0 if ffn is None else ffn.up.weight.shape[0]


def _branches(layers: Iterable[ShapedLayer]) -> Iterator[_Branch]:
    for layer in layers:
        for branch in (layer.attention, layer.ffn):
            if isinstance(branch, Replaced):
                yield from _fill(branch)
            elif branch is not None:
                yield branch


def _fill(fill: Replaced) -> Iterator[_Branch]:
    bias = fill.map.bias
    if fill.norm is not None:
        narrow = _narrow(fill)
        if narrow is not None:
            yield narrow
            return
        yield Square(fill.norm, fill.map.weight)
    if bias is not None:
        yield _Constant(bias)


def _narrow(fill: Replaced) -> FeedForward | None:
    """The fill as an FF of as many neurons as its rank, if that reads fewer weights."""
    if fill.factors is None or fill.norm is None:
        return None
    down, up = fill.factors  # [r, d], [d, r]
    hidden, rank = up.shape
    neurons = -(-rank // NARROWEST) * NARROWEST
    if 3 * neurons >= hidden + 3 * NARROWEST:
        return None
    more = neurons - rank
    gate = Affine(torch.zeros(neurons, hidden), torch.full((neurons,), GATE))
    pad = torch.nn.functional.pad
    inward, outward = pad(down, (0, 0, 0, more)), pad(up, (0, more))
    return FeedForward(fill.norm, gate, Affine(inward, None), Affine(outward, fill.map.bias))


def _plus(block: Block | None, value: Tensor, hidden: int) -> Block:
    """The block with a constant added behind it."""
    block = block or Block(_first(hidden), None)
    if block.ffn is None and isinstance(block.attention, Attention):
        output = _biased(block.attention.output, value)
        return replace(block, attention=replace(block.attention, output=output))
    ffn = block.ffn or _nothing(hidden)
    return replace(block, ffn=replace(ffn, down=_biased(ffn.down, value)))


def _biased(affine: Affine, value: Tensor) -> Affine:
    whole = value.float() if affine.bias is None else affine.bias.float() + value.float()
    return Affine(affine.weight, whole)


def _ended(block: Block, hidden: int) -> Block:
    return block if block.ffn is not None else replace(block, ffn=_nothing(hidden))


def _first(hidden: int) -> Square:
    return Square(torch.ones(hidden), torch.zeros(hidden, hidden))


def _nothing(hidden: int) -> FeedForward:
    inward = Affine(torch.zeros(NARROWEST, hidden), None)
    return FeedForward(
        torch.ones(hidden), inward, inward, Affine(torch.zeros(hidden, NARROWEST), None)
    )
