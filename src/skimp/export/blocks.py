"""A Llama-shaped model packed anew into blocks of an attention and an FF, either of which may lack.

Engines that let a block be without attention or without FF know no fills. All of them can be said
in blocks, exactly:

- A constant joins the output bias of what runs before it.
- A linear fill is an FF as wide as its rank whose gate is constant: silu(32) is 32 to the last bit
  of every format, so down(silu(gate) · up) is linear in up's input.
- What runs before the first attention hangs on the token alone, so it can be worked out for the
  whole vocabulary and stored as the embedding (as Graef, 2024, does for other models). That also
  spares an attention-free first block, which some engines cannot run. A tied embedding is the head
  too and must stay; there the first block is given an attention whose output is zero.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from skimp.export.shaped import Affine, Attention, FeedForward, Replaced, ShapedLayer

# silu(x) = x in float32 from about 17 on; a power of two so that dividing by it is exact.
_OPEN_GATE = 32.0
_ROWS = 4096
Sublayer = Attention | FeedForward


@dataclass(frozen=True)
class Block:
    """What an engine's layer holds, and where in the dense model it comes from."""

    attention: Attention | None
    ffn: FeedForward | None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packed:
    """`folded` names what is no block but belongs into the embedding: the constant `entry` [d], and
    the FFs `leading`."""

    blocks: tuple[Block, ...]
    folded: tuple[str, ...] = ()
    entry: Tensor | None = None
    leading: tuple[FeedForward, ...] = ()

    def folded_into(self, embedding: Tensor, eps: float) -> Tensor:
        """The embedding [vocabulary, d] with it; `eps` of the RMS norms."""
        return _folded(embedding, self.entry, self.leading, eps) if self.folded else embedding

    @property
    def attention_biased(self) -> bool:
        maps = [m for b in self.blocks if (a := b.attention) for m in attention_maps(a).values()]
        return any(each.bias is not None for each in maps)

    @property
    def ffn_biased(self) -> bool:
        maps = [m for b in self.blocks if (f := b.ffn) for m in ffn_maps(f).values()]
        return any(each.bias is not None for each in maps)


def attention_maps(attention: Attention) -> dict[str, Affine]:
    """The maps of an attention by transformers' names."""
    return {
        "q_proj": attention.query,
        "k_proj": attention.key,
        "v_proj": attention.value,
        "o_proj": attention.output,
    }


def ffn_maps(ffn: FeedForward) -> dict[str, Affine]:
    """The maps of an FF by transformers' names."""
    return {"gate_proj": ffn.gate, "up_proj": ffn.up, "down_proj": ffn.down}


def pack(layers: Iterable[ShapedLayer], *, tied: bool) -> Packed:
    """Pack layers that have at least one attention; `tied`: the embedding is the head too."""
    entry, chain = _chain(layers)
    first = next(i for i, (_, each) in enumerate(chain) if isinstance(each, Attention))
    if not first and entry is None:
        return Packed(tuple(_blocks(chain)))
    if tied:
        model = next(each for _, each in chain if isinstance(each, Attention))
        whole = [("a zero attention", _zero_attention(model, entry)), *chain]
        return Packed(tuple(_blocks(whole)))
    names = (*(("constants",) if entry is not None else ()), *(name for name, _ in chain[:first]))
    leading = tuple(each for _, each in chain[:first] if isinstance(each, FeedForward))
    return Packed(tuple(_blocks(chain[first:])), names, entry, leading)


def _chain(layers: Iterable[ShapedLayer]) -> tuple[Tensor | None, list[tuple[str, Sublayer]]]:
    """Named sublayers in running order, and the constant [d] to be added before all of them."""
    entry: Tensor | None = None
    chain: list[tuple[str, Sublayer]] = []
    for layer in layers:
        for kind, each in (("attention", layer.attention), ("FF", layer.ffn)):
            name = f"{kind} {layer.source}"
            if isinstance(each, Replaced) and each.norm is not None:
                chain.append((f"linear fill of {name}", _as_ffn(each)))
            elif isinstance(each, Replaced):
                value = each.map.bias
                assert value is not None
                if chain:
                    chain[-1] = (chain[-1][0], _with_bias(chain[-1][1], value))
                else:
                    entry = value if entry is None else entry + value
            elif each is not None:
                chain.append((name, each))
    return entry, chain


def _blocks(chain: Sequence[tuple[str, Sublayer]]) -> Iterable[Block]:
    block = Block(None, None)
    for name, each in chain:
        if isinstance(each, Attention):
            if block.sources:
                yield block
            block = Block(each, None, (name,))
        else:
            if block.ffn is not None:
                yield block
                block = Block(None, None)
            block = replace(block, ffn=each, sources=(*block.sources, name))
    yield block


def _as_ffn(fill: Replaced) -> FeedForward:
    """A linear fill as an FF of its rank, or of the model's width where it has no rank."""
    assert fill.norm is not None
    up, down = fill.factors or (torch.eye(len(fill.norm)).to(fill.norm), fill.map.weight)
    open_gate = up.new_full((len(up),), _OPEN_GATE)
    return FeedForward(
        norm=fill.norm,
        gate=Affine(torch.zeros_like(up), open_gate),
        up=Affine(up, None),
        down=Affine(down / _OPEN_GATE, fill.map.bias),
    )


def _with_bias(each: Sublayer, value: Tensor) -> Sublayer:
    if isinstance(each, Attention):
        return replace(each, output=_biased(each.output, value))
    return replace(each, down=_biased(each.down, value))


def _biased(affine: Affine, value: Tensor) -> Affine:
    bias = value if affine.bias is None else (affine.bias.float() + value.float()).to(value.dtype)
    return Affine(affine.weight, bias)


def _zero_attention(like: Attention, bias: Tensor | None) -> Attention:
    """An attention that adds `bias`, or nothing.

    It has as many KV heads as the others: the caches of some engines are alike in all layers.
    """

    def zero(affine: Affine) -> Affine:
        return Affine(torch.zeros_like(affine.weight), None)

    output = Affine(torch.zeros_like(like.output.weight), bias)
    norm = torch.ones_like(like.norm)
    return Attention(norm, zero(like.query), zero(like.key), zero(like.value), output)


@torch.no_grad()
def _folded(
    embedding: Tensor, entry: Tensor | None, leading: Sequence[FeedForward], eps: float
) -> Tensor:
    """The residual stream of every token behind `entry` and `leading`, summed in float32."""
    found = torch.empty_like(embedding)
    for start in range(0, len(embedding), _ROWS):
        state = embedding[start : start + _ROWS].float()
        if entry is not None:
            state = state + entry.float()
        for ffn in leading:
            scaled = state * torch.rsqrt(state.pow(2).mean(-1, keepdim=True) + eps)
            inner = scaled * ffn.norm.float()
            hidden = functional.silu(_linear(inner, ffn.gate)) * _linear(inner, ffn.up)
            state = state + _linear(hidden, ffn.down)
        found[start : start + _ROWS] = state
    return found


def _linear(inputs: Tensor, affine: Affine) -> Tensor:
    bias = None if affine.bias is None else affine.bias.float()
    return functional.linear(inputs, affine.weight.float(), bias)
