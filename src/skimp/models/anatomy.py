"""What a model is made of: every layer, sublayer, norm, projection and head, with its size.

An :class:`Anatomy` is plain data read off a model (dense or planned, on any device, meta included)
and never holds a tensor. Costs at a workload are worked out from it in
:mod:`skimp.measure.cost`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

from skimp.models.carve import KEEP
from skimp.models.families import Family

Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")


@dataclass(frozen=True)
class Part:
    """A module with weights: `path` from the model's root, `shape` of its largest weight."""

    path: str
    role: Literal["projection", "norm", "embedding", "head", "fill", "other"]
    shape: tuple[int, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Sublayer:
    """One attention or FF branch with the norms that are its alone.

    `state` is "keep", or the fill in its place. `active_bytes` and `active_parameters` are what one
    token reads (fewer than `bytes` in a mixture of experts); `decode_share` is how much of that is
    left while decoding, where a plan keeps some neurons for an answer. `flops_per_token` counts its
    matrix products, 2 per weight, without the attention scores. `kv_elements` are the numbers
    cached per token, `score_flops` the FLOPs per token and cached token.
    """

    kind: Kind
    state: str
    parts: tuple[Part, ...]
    active_share: float = 1.0
    decode_share: float = 1.0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    kv_elements: int = 0
    window: int | None = None

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def active_bytes(self) -> float:
        return self.bytes * self.active_share

    @property
    def flops_per_token(self) -> float:
        products = [p for p in self.parts if p.role != "norm" and len(p.shape) > 1]
        weights = sum(part.parameters for part in products)
        return 2 * weights * self.active_share

    @property
    def score_flops(self) -> int:
        return 4 * self.heads * self.head_dim if self.kv_elements else 0


@dataclass(frozen=True)
class Layer:
    """A decoder block; `source` is its index in the dense model, `shared` what no branch owns."""

    source: int
    attention: Sublayer
    ffn: Sublayer
    shared: tuple[Part, ...] = ()

    def sublayer(self, kind: Kind) -> Sublayer:
        return self.attention if kind == "attention" else self.ffn


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model. `element_bytes` is the size of one weight or KV number.

    `rest` are parts outside the layers; the head is listed even when it is tied to the embedding
    (`tied`), and then counts no parameters of its own, but its bytes are read at every step. After
    every `refresh` answer tokens (0: never) a plan has them read again with whole FFs.
    """

    model_type: str
    family: Family
    hidden_size: int
    vocabulary: int
    context_length: int | None
    dense_layers: int
    layers: tuple[Layer, ...]
    embedding: Part
    head: Part
    tied: bool
    rest: tuple[Part, ...]
    element_bytes: int
    fingerprint: str = field(repr=False)
    refresh: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> "Anatomy":
        """Read the anatomy of a transformers causal language model.

        Raises:
            LoadError: an unknown architecture that is no stack of residual decoder blocks.
        """
        from skimp.models.reading import read_anatomy

        return read_anatomy(model)

    @property
    def parameters(self) -> int:
        """All parameters, a tied head counted once."""
        own_head = 0 if self.tied else self.head.parameters
        return self.layer_parameters + self._outside("parameters") + own_head

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of all weights, a tied head counted once."""
        own_head = 0 if self.tied else self.head.bytes
        layers = sum(_layer_sum(layer, "bytes") for layer in self.layers)
        return layers + self._outside("bytes") + own_head

    @property
    def ffn_size(self) -> int:
        """Width of the widest FF projection that is still there (fused ones whole), or 0."""
        kept = [part for _, sublayer in self.sublayers("ffn") for part in sublayer.parts]
        return max((max(part.shape[-2:]) for part in kept if len(part.shape) > 1), default=0)

    @property
    def layer_parameters(self) -> int:
        return sum(_layer_sum(layer, "parameters") for layer in self.layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token of one sequence adds to the KV cache (windows not yet full)."""
        return sum(layer.attention.kv_elements for layer in self.layers) * self.element_bytes

    def sublayers(self, kind: Kind | None = None) -> Iterator[tuple[int, Sublayer]]:
        """(source layer, sublayer) of every sublayer that is still there, in running order."""
        for layer in self.layers:
            for sublayer in (layer.attention, layer.ffn):
                if sublayer.state == KEEP and kind in (None, sublayer.kind):
                    yield layer.source, sublayer

    def without_layers(self, sources: Iterable[int]) -> "Anatomy":
        """The anatomy with whole layers gone."""
        gone = set(sources)
        return replace(self, layers=tuple(la for la in self.layers if la.source not in gone))

    def _outside(self, name: str) -> int:
        return getattr(self.embedding, name) + sum(getattr(part, name) for part in self.rest)


def _layer_sum(layer: Layer, name: str) -> int:
    shared = sum(getattr(part, name) for part in layer.shared)
    return getattr(layer.attention, name) + getattr(layer.ffn, name) + shared
