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


def obstacles(product: Product) -> list[Obstacle]:
    """Why the model is not Llama-shaped; nothing if it is."""
    config = product.config
    kind = product.dense.model_type
    found = []

    def no(field: str, reason: str) -> None:
        found.append(Obstacle(field, reason, "export `--to transformers`, or `--to vllm-plugin`"))

    if kind not in MODEL_TYPES:
        no("model", f"a {kind} model is not built as Llama is (known: {', '.join(MODEL_TYPES)})")
        return found
    act = getattr(config, "hidden_act", "silu")
    if act not in ("silu", "swish"):
        no("hidden_act", f"FFs with {act} in place of silu")
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    used = getattr(config, "use_sliding_window", kind == "mistral") or windowed
    if window and used and window < (product.dense.context_length or window + 1):
        no("sliding_window", f"attention sees {window} tokens back only")
    return found


def layers(product: Product) -> Iterator[ShapedLayer]:
    """The layers that remain, in running order; the model must have no `obstacles`."""
    for layer, entry in zip(product.model.model.layers, product.anatomy.layers, strict=True):
        yield ShapedLayer(entry.source, _attention(layer), _feed_forward(layer))


def _attention(layer: Any) -> Attention | Replaced | None:
    module = layer.self_attn
    if isinstance(module, carve.Fill):
        return _replaced(module, layer.input_layernorm)
    return Attention(
        layer.input_layernorm.weight.detach(),
        *(Affine.of(getattr(module, name)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
    )


def _feed_forward(layer: Any) -> FeedForward | Replaced | None:
    module = layer.mlp
    if isinstance(module, carve.Fill):
        return _replaced(module, layer.post_attention_layernorm)
    return FeedForward(
        layer.post_attention_layernorm.weight.detach(),
        *(Affine.of(getattr(module, name)) for name in ("gate_proj", "up_proj", "down_proj")),
    )


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
