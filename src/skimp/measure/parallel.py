"""What tensor parallelism makes of a model's cost: each device's share, and what is exchanged.

Devices split every matrix as engines do (Shoeybi et al. 2019, Megatron-LM): attention by heads, FFs
by neurons, each expert of a mixture likewise, embedding and head by vocabulary. Every device holds
all of the norms, learned positions, routers and fills, and whatever is not recognised; a KV head
too, where there are fewer of them than devices. A width that does not divide counts as that of the
device with the most.

The results of a split sublayer are summed over all devices, once for each attention and each FF
that is there. So a sublayer that a plan leaves out saves that exchange besides its bytes.
"""

from dataclasses import asdict, dataclass, replace
from math import ceil, isfinite, prod
from typing import Any, Self

from skimp.errors import SkimpError
from skimp.measure.machine import Machine
from skimp.measure.oracle import Overheads, Prediction
from skimp.measure.oracle import predict as predict_one
from skimp.models.anatomy import Anatomy, Part, Sublayer
from skimp.models.carve import KEEP
from skimp.workload import Workload


@dataclass(frozen=True)
class Link:
    """What devices exchange over: `bandwidth` in bytes/s each way, `latency` in s an exchange.

    The defaults are what to expect of two GPUs on PCIe 4.0 x16 (32 GB/s by the standard); NVLink 4
    has 450 GB/s each way. Measure yours: `all_reduce_perf` of nccl-tests tells the bandwidth
    ("busbw" of large messages) and the latency (time of the smallest).

    Raises:
        SkimpError: the bandwidth is not positive, or the latency negative.
    """

    bandwidth: float = 25e9
    latency: float = 20e-6

    def __post_init__(self) -> None:
        if not (isfinite(self.bandwidth) and self.bandwidth > 0):
            raise SkimpError("--link: the bandwidth must be above 0; give GB/s,µs such as 25,20.")
        if not (isfinite(self.latency) and self.latency >= 0):
            raise SkimpError("--link: the latency must be at least 0; give GB/s,µs such as 25,20.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `GB/s,µs`; raises SkimpError on anything else."""
        try:
            bandwidth, latency = (float(number) for number in text.split(","))
        except ValueError:
            raise SkimpError(
                f"--link: {text!r} is not of the form GB/s,µs, for example 25,20."
            ) from None
        return cls(bandwidth * 1e9, latency * 1e-6)

    def all_reduce(self, size: float, devices: int) -> float:
        """Seconds to sum `size` bytes over all devices: a ring sends 2·(N−1)/N of them."""
        return self.latency + 2 * (devices - 1) / devices * size / self.bandwidth

    def gather(self, size: float, devices: int) -> float:
        """Seconds to put together `size` bytes of which each device has its share."""
        return self.latency + (devices - 1) / devices * size / self.bandwidth


@dataclass(frozen=True)
class Foretold:
    """Seconds of a pass on each device (`device`), and what exchanging adds to it."""

    device: Prediction
    prefill_link: float
    decode_link: float

    @property
    def prefill_s(self) -> float:
        return self.device.prefill_s + self.prefill_link

    @property
    def tpot_s(self) -> float:
        return self.device.tpot_s + self.decode_link

    def as_dict(self) -> dict[str, Any]:
        return {
            "prefill_s": self.prefill_s,
            "tpot_s": self.tpot_s,
            "prefill": {**asdict(self.device.prefill), "link": self.prefill_link},
            "decode": {**asdict(self.device.decode), "link": self.decode_link},
        }


def split(anatomy: Anatomy, devices: int) -> Anatomy:
    """What one of so many devices holds and computes; for one the anatomy as it is.

    :mod:`skimp.measure.cost` says what it costs, as of any other.

    Raises:
        SkimpError: attention heads cannot be dealt out to so many devices.
    """
    if devices == 1:
        return anatomy
    if devices < 1:
        raise SkimpError(f"--tensor-parallel: {devices} devices; give at least 1.")
    return replace(
        anatomy,
        layers=tuple(
            replace(
                layer,
                attention=_attention(layer.attention, layer.source, anatomy.hidden_size, devices),
                ffn=_ffn(layer.ffn, anatomy.hidden_size, devices),
            )
            for layer in anatomy.layers
        ),
        embedding=_cut(anatomy.embedding, 0, ceil(anatomy.embedding.shape[0] / devices)),
        head=_cut(anatomy.head, 0, ceil(anatomy.head.shape[0] / devices)),
    )


def all_reduces(anatomy: Anatomy) -> int:
    """Sums over all devices in one pass: one a sublayer that is there, and the embedding's."""
    return 1 + sum(1 for _ in anatomy.sublayers())


def link_seconds(anatomy: Anatomy, tokens: int, logits: int, devices: int, link: Link) -> float:
    """Exchanging in one pass over `tokens` tokens, of which `logits` have their logits gathered."""
    if devices == 1:
        return 0.0
    states = tokens * anatomy.hidden_size * anatomy.element_bytes
    heads = logits * anatomy.vocabulary * anatomy.element_bytes
    summed = all_reduces(anatomy) * link.all_reduce(states, devices)
    return summed + link.gather(heads, devices)


def predict(
    anatomy: Anatomy,
    workload: Workload,
    machine: Machine,
    *,
    devices: int,
    link: Link | None = None,
    prefill: Overheads | None = None,
    decode: Overheads | None = None,
) -> Foretold:
    """Foretell prefill and decode time on so many devices that are each like `machine`.

    Nothing is taken to overlap with the exchanges: each waits for what the one before it brought.

    Raises:
        SkimpError: as `split`, and as :func:`skimp.measure.oracle.predict`.
    """
    link = link or Link()
    own = predict_one(split(anatomy, devices), workload, machine, prefill=prefill, decode=decode)
    batch = workload.batch
    step = link_seconds(anatomy, batch, batch, devices, link)
    if anatomy.refresh:  # every so many tokens are read again by one pass
        tokens = anatomy.refresh + 1
        step += link_seconds(anatomy, batch * tokens, batch, devices, link) / tokens
    prompt = link_seconds(anatomy, batch * workload.prompt, batch, devices, link)
    return Foretold(own, prompt, step)


def _attention(sublayer: Sublayer, layer: int, hidden: int, devices: int) -> Sublayer:
    if sublayer.state != KEEP:
        return sublayer
    heads, kv_heads, width = sublayer.heads, sublayer.kv_heads, sublayer.head_dim
    if sublayer.kv_elements != 2 * kv_heads * width:
        raise SkimpError(
            "--tensor-parallel: this model's attention caches what heads share, so it is not split "
            "by heads; leave the option out."
        )
    if heads % devices or (kv_heads % devices and devices % kv_heads):
        raise SkimpError(
            f"--tensor-parallel: the {heads} heads and {kv_heads} KV heads of layer {layer} cannot "
            f"be dealt out to {devices} devices; give a divisor of both, or one of the heads that "
            "is a multiple of the KV heads."
        )
    own, own_kv = heads // devices, max(1, kv_heads // devices)
    sizes = {
        heads * width: own * width,
        kv_heads * width: own_kv * width,
        (heads + 2 * kv_heads) * width: (own + 2 * own_kv) * width,
    }
    parts = []
    for part in sublayer.parts:
        axis = _axis(part, hidden) if part.role == "projection" else None
        size = None if axis is None else sizes.get(part.shape[axis])
        parts.append(part if axis is None or size is None else _cut(part, axis, size))
    return replace(
        sublayer,
        parts=tuple(parts),
        heads=own,
        kv_heads=own_kv,
        kv_elements=2 * own_kv * width,
    )


def _ffn(sublayer: Sublayer, hidden: int, devices: int) -> Sublayer:
    if sublayer.state != KEEP:
        return sublayer
    experts = {part.shape[0] for part in sublayer.parts if len(part.shape) == 3}
    parts = []
    for part in sublayer.parts:
        axis = _axis(part, hidden) if part.role == "projection" else None
        # A router has a row for each expert and stands on every device.
        if axis is None or (len(part.shape) == 2 and part.shape[axis] in experts):
            parts.append(part)
        else:
            parts.append(_cut(part, axis, ceil(part.shape[axis] / devices)))
    made = replace(sublayer, parts=tuple(parts))
    if experts:  # the share of experts left idle stays, what stands beside them does not
        idle = (1 - sublayer.active_share) * sublayer.parameters / _routed(sublayer)
        made = replace(made, active_share=1 - idle * _routed(made) / made.parameters)
    return made


def _routed(sublayer: Sublayer) -> int:
    return sum(part.parameters for part in sublayer.parts if len(part.shape) == 3)


def _axis(part: Part, hidden: int) -> int | None:
    """The dimension of a part's matrix that does not lie along the residual stream."""
    if len(part.shape) < 2:
        return None
    *_, rows, columns = part.shape
    last = len(part.shape) - 1
    if columns == hidden:
        return last - 1
    return last if rows == hidden else None


def _cut(part: Part, axis: int, size: int) -> Part:
    """The part with `size` in place of a dimension; a bias goes with its matrix."""
    shape = (*part.shape[:axis], size, *part.shape[axis + 1 :])
    share = prod(shape) / prod(part.shape)
    return replace(
        part,
        shape=shape,
        parameters=round(part.parameters * share),
        bytes=round(part.bytes * share),
    )
