"""A planned model read as Llama-shaped: what engines for Llama's architecture want to be told.

Layers of RMS norm, attention with rotary positions, RMS norm and a gated FF of any width. Weights
are the own tensors of the model or views of them; only the two maps of a fill are made one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from skimp.export.target import Obstacle, Product
from skimp.models import carve

MODEL_TYPES = ("llama", "mistral", "qwen2")
FUSED = ("phi3",)
"""Types whose maps are those of Llama, some laid into one weight."""


@dataclass(frozen=True)
class Affine:
    """A linear map, `weight` [out, in] and `bias` [out] or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: Any) -> "Affine":
        return cls(module.weight.detach(), None if module.bias is None else module.bias.detach())


@dataclass(frozen=True)
class Attention:
    """Rows of `query` are heads × width, those of `key` and `value` KV heads × width."""

    norm: Tensor
    query: Affine
    key: Affine
    value: Affine
    output: Affine


@dataclass(frozen=True)
class FeedForward:
    """A gated FF of any width: down(silu(gate) · up)."""

    norm: Tensor
    gate: Affine
    up: Affine
    down: Affine


@dataclass(frozen=True)
class Replaced:
    """A fill: `map` [d, d] of the normalised input; where `norm` is None the constant `map.bias`.

    `rank`: of the map, None for no limit. Where there is one, `factors` are the maps [rank, d] and
    [d, rank] that it is the product of.
    """

    norm: Tensor | None
    map: Affine
    rank: int | None = None
    factors: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class ShapedLayer:
    """What stands in a layer; None: nothing."""

    source: int
    attention: Attention | Replaced | None
    ffn: FeedForward | Replaced | None


def obstacles(product: Product, known: tuple[str, ...] = MODEL_TYPES) -> list[Obstacle]:
    """Why the model is not Llama-shaped, or none of the `known` types; nothing if it is."""
    config = product.config
    kind = product.dense.model_type
    found = []

    def no(field: str, reason: str) -> None:
        found.append(Obstacle(field, reason, "export `--to transformers`, or `--to vllm-plugin`"))

    if kind not in known:
        no("model", f"a {kind} model is not built as Llama is (known: {', '.join(known)})")
        return found
    act = getattr(config, "hidden_act", "silu")
    if act not in ("silu", "swish"):
        no("hidden_act", f"FFs with {act} in place of silu")
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    used = getattr(config, "use_sliding_window", kind in ("mistral", "phi3")) or windowed
    if window and used and window < (product.dense.context_length or window + 1):
        no("sliding_window", f"attention sees {window} tokens back only")
    return found


def layers(product: Product) -> Iterator[ShapedLayer]:
    """The layers that remain, in running order; the model must have no `obstacles`."""
    for layer, entry in zip(product.model.model.layers, product.anatomy.layers, strict=True):
        yield ShapedLayer(entry.source, _attention(layer, product.config), _feed_forward(layer))


def _attention(layer: Any, config: Any) -> Attention | Replaced | None:
    module = layer.self_attn
    if isinstance(module, carve.Fill):
        return _replaced(module, layer.input_layernorm)
    if hasattr(module, "qkv_proj"):
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        query, key, value = _parts(module.qkv_proj, (heads, kv_heads, kv_heads))
    else:
        query, key = Affine.of(module.q_proj), Affine.of(module.k_proj)
        value = Affine.of(module.v_proj)
    norm = layer.input_layernorm.weight.detach()
    return Attention(norm, query, key, value, Affine.of(module.o_proj))


def _feed_forward(layer: Any) -> FeedForward | Replaced | None:
    module = layer.mlp
    if isinstance(module, carve.Fill):
        return _replaced(module, layer.post_attention_layernorm)
    if hasattr(module, "gate_up_proj"):
        gate, up = _parts(module.gate_up_proj, (1, 1))
    else:
        gate, up = Affine.of(module.gate_proj), Affine.of(module.up_proj)
    norm = layer.post_attention_layernorm.weight.detach()
    return FeedForward(norm, gate, up, Affine.of(module.down_proj))


def _parts(module: Any, shares: tuple[int, ...]) -> list[Affine]:
    """The maps that lie in one weight, their rows in proportion to `shares`."""
    whole = Affine.of(module)
    unit = whole.weight.shape[0] // sum(shares)
    sizes = [unit * share for share in shares]
    biases = [None] * len(shares) if whole.bias is None else whole.bias.split(sizes)
    return [Affine(*pair) for pair in zip(whole.weight.split(sizes), biases, strict=True)]


def _replaced(fill: carve.Fill, norm: Any) -> Replaced | None:
    if isinstance(fill, carve.Constant):
        size = len(fill.value)
        return Replaced(None, Affine(fill.value.new_zeros(size, size), fill.value.detach()))
    if not isinstance(fill, carve.Linear):
        return None
    up, down = fill.up, fill.down
    if isinstance(down, nn.Linear):
        # The product in float32: its rounding should be the format's alone.
        whole = (up.weight.detach().float() @ down.weight.detach().float()).to(up.weight.dtype)
        return Replaced(
            norm.weight.detach(),
            Affine(whole, up.bias.detach()),
            down.out_features,
            (down.weight.detach(), up.weight.detach()),
        )
    return Replaced(norm.weight.detach(), Affine.of(up))
