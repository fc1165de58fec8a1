"""What a workload costs by counting: bytes read, FLOPs done, bytes held. Nothing is run.

Decoding at small batches reads far more than it computes, so its time is bounded by the bytes of
one step; prefill is bounded by its FLOPs. A step reads every weight that its tokens touch once for
the whole batch, and its own KV cache for every sequence. Not counted: activations (they stay in the
processor's caches), the KV entries a step writes (one token's), and whatever an implementation
copies needlessly; how far a real run stays behind is what :mod:`skimp.measure.speed` reports.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import prod

from skimp.models.anatomy import Anatomy, Part, Sublayer
from skimp.workload import Workload

# A learned position table may hold a few rows more than there are positions (OPT: two).
_SPARE_ROWS = 8


@dataclass(frozen=True)
class Tally:
    """Bytes read and FLOPs done by one kind of part."""

    bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Cost:
    """One pass over a batch, by kind of part.

    `attention` and `ffn` hold the sublayers' weights with the norms and fills that are theirs,
    `kv` the cache and the attention scores, `embedding` the rows gathered (positions included), and
    `other` the norms that no single branch owns and everything outside the layers.
    """

    attention: Tally
    ffn: Tally
    head: Tally
    embedding: Tally
    kv: Tally
    other: Tally

    def kinds(self) -> dict[str, Tally]:
        """The tallies by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def bytes(self) -> float:
        return sum(tally.bytes for tally in self.kinds().values())

    @property
    def flops(self) -> float:
        return sum(tally.flops for tally in self.kinds().values())

    @property
    def kv_bytes(self) -> float:
        return self.kv.bytes

    @property
    def head_bytes(self) -> float:
        return self.head.bytes

    @property
    def weight_bytes(self) -> float:
        """Everything read but the KV cache."""
        return self.bytes - self.kv.bytes


def decode_cost(anatomy: Anatomy, workload: Workload) -> Cost:
    """One decode step of the whole batch, averaged over the workload's new tokens."""
    contexts = (workload.prompt, workload.new)
    return _cost(
        anatomy,
        tokens=workload.batch,
        decoding=True,
        logits=workload.batch,
        cached=workload.batch * _elements(anatomy, _mean_cached, *contexts),
        scores=workload.batch * _scores(anatomy, _mean_cached, *contexts),
    )


def partial_bytes(anatomy: Anatomy, workload: Workload, *, layers: int, head: bool) -> float:
    """Bytes of a decode step that runs the first `layers` only, with or without the full head."""
    spent = decode_cost(replace(anatomy, layers=anatomy.layers[:layers]), workload)
    return spent.bytes - (0 if head else spent.head_bytes)


def prefill_cost(anatomy: Anatomy, workload: Workload) -> Cost:
    """Reading the batch's prompts: causal scores, logits of the last position only.

    `kv` counts the bytes that stay in the cache, written once.
    """
    return _cost(
        anatomy,
        tokens=workload.batch * workload.prompt,
        logits=workload.batch,
        cached=workload.batch * _elements(anatomy, _held, workload.prompt),
        scores=workload.batch * _scores(anatomy, _causal, workload.prompt),
    )


def byte_bound(dense: Anatomy, planned: Anatomy, workload: Workload) -> float:
    """Speedup of decoding if its time were proportional to the bytes it reads."""
    return decode_cost(dense, workload).bytes / decode_cost(planned, workload).bytes


def compute_bound(dense: Anatomy, planned: Anatomy, workload: Workload) -> float:
    """Speedup of prefill if its time were proportional to its FLOPs."""
    return prefill_cost(dense, workload).flops / prefill_cost(planned, workload).flops


def shares(anatomy: Anatomy, workload: Workload) -> dict[str, float]:
    """Share of a decode step's bytes that each kind of part reads; sums to 1."""
    cost = decode_cost(anatomy, workload)
    return {name: tally.bytes / cost.bytes for name, tally in cost.kinds().items()}


def kv_bytes_per_token(anatomy: Anatomy) -> int:
    """Bytes that one token of one sequence adds to the KV cache (windows not yet full)."""
    return anatomy.kv_bytes_per_token


def kv_bytes(anatomy: Anatomy, tokens: int, batch: int) -> int:
    """Bytes of the KV cache once `tokens` tokens of `batch` sequences are in it."""
    return round(batch * _elements(anatomy, _held, tokens) * anatomy.element_bytes)


def working_bytes(anatomy: Anatomy, workload: Workload) -> int:
    """Estimate of the passing tensors at their widest: in a prefill's FF sublayer, or its logits.

    Two residual-width tensors and, for a gated FF, gate, up and product; logits of one position in
    float32. Attention kernels that write the whole score matrix need more.
    """
    width = 2 * anatomy.hidden_size + 3 * max(anatomy.ffn_size, anatomy.hidden_size)
    passing = workload.batch * workload.prompt * width * anatomy.element_bytes
    return max(passing, workload.batch * anatomy.vocabulary * 4)


def run_bytes(anatomy: Anatomy, workload: Workload) -> int:
    """Estimate of what a run needs beside the weights: its full cache and the passing tensors."""
    length = workload.prompt + workload.new
    return kv_bytes(anatomy, length, workload.batch) + working_bytes(anatomy, workload)


def peak_bytes(anatomy: Anatomy, workload: Workload) -> int:
    """Estimate of the memory that the model and a run of it need."""
    return anatomy.weight_bytes + run_bytes(anatomy, workload)


def _cost(
    anatomy: Anatomy,
    *,
    tokens: int,
    logits: int,
    cached: float,
    scores: float,
    decoding: bool = False,
) -> Cost:
    """A pass over `tokens` tokens in all, of which `logits` are given logits."""
    shared = [part for layer in anatomy.layers for part in layer.shared]
    tables = [part for part in anatomy.rest if _is_table(part, anatomy)]
    dense = [part for part in anatomy.rest if part not in tables]
    # The head multiplies a d-wide state by [V, d]: `shape` also holds where a tied head counts no
    # parameters of its own.
    head_flops = 2 * prod(anatomy.head.shape)
    return Cost(
        attention=_sublayers([layer.attention for layer in anatomy.layers], tokens),
        ffn=_sublayers([layer.ffn for layer in anatomy.layers], tokens, decoding),
        head=Tally(anatomy.head.bytes, head_flops * logits),
        embedding=Tally(sum(_row(part) for part in (anatomy.embedding, *tables)) * tokens),
        kv=Tally(cached * anatomy.element_bytes, scores),
        other=Tally(
            sum(part.bytes for part in (*shared, *dense)),
            sum(2 * part.parameters for part in (*shared, *dense) if len(part.shape) > 1) * tokens,
        ),
    )


def _sublayers(sublayers: list[Sublayer], tokens: int, decoding: bool = False) -> Tally:
    total = Tally()
    for sublayer in sublayers:
        share = sublayer.decode_share if decoding else 1.0
        read, flops = touched_bytes(sublayer, tokens), sublayer.flops_per_token * tokens
        total = Tally(total.bytes + share * read, total.flops + share * flops)
    return total


def touched_bytes(sublayer: Sublayer, tokens: int) -> float:
    """Bytes of a sublayer's weights that a pass over `tokens` tokens reads.

    In a mixture of experts each token picks k of E experts; if the picks are independent and even,
    `tokens` of them touch E·(1 − (1 − k/E)^tokens) distinct ones. Experts that are one matrix each
    (an FF thinned by a plan) are picked for the whole batch: the active share holds as it is.
    """
    routed = sum(part.parameters for part in sublayer.parts if len(part.shape) == 3)
    if not routed:
        return sublayer.active_bytes
    routed_bytes = sum(part.bytes for part in sublayer.parts if len(part.shape) == 3)
    idle = (1 - sublayer.active_share) * sublayer.parameters / routed
    return sublayer.bytes - routed_bytes * idle**tokens


def _elements(anatomy: Anatomy, cached: Callable[..., float], *counts: int) -> float:
    """KV numbers of all layers, `cached(*counts, window)` tokens in each."""
    return sum(
        layer.attention.kv_elements * cached(*counts, layer.attention.window)
        for layer in anatomy.layers
    )


def _scores(anatomy: Anatomy, cached: Callable[..., float], *counts: int) -> float:
    return sum(
        layer.attention.score_flops * cached(*counts, layer.attention.window)
        for layer in anatomy.layers
    )


def _held(tokens: int, window: int | None) -> int:
    return tokens if window is None else min(tokens, window)


def _causal(tokens: int, window: int | None) -> float:
    """Query-key pairs of one sequence read at once: token i sees i tokens, itself included."""
    wide = _held(tokens, window)
    return wide * (wide + 1) / 2 + (tokens - wide) * wide


def _mean_cached(prompt: int, new: int, window: int | None) -> float:
    """Mean of min(context, window) over the contexts prompt, …, prompt + new − 1."""
    if window is None or prompt + new - 1 <= window:
        return prompt + (new - 1) / 2
    growing = max(0, window - prompt)
    return (growing * (prompt + (growing - 1) / 2) + (new - growing) * window) / new


def _is_table(part: Part, anatomy: Anatomy) -> bool:
    """Whether a part outside the layers is a table that is read by the row (learned positions)."""
    if part.role == "embedding":
        return True
    length = anatomy.context_length
    rows = part.shape[0] if len(part.shape) == 2 else 0
    return length is not None and length <= rows <= length + _SPARE_ROWS


def _row(part: Part) -> float:
    return part.bytes / part.shape[0]
