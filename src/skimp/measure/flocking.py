"""Whether the neurons of an FF flock: the same ones for all tokens of a prompt, others for another.

That is what prompt-adaptive experts live on (GRIFFIN, Dong et al., 2024). With z_t the neurons'
values at token t, |z_tj| / ‖z_t‖ shows it to the eye, and the experts that prompts choose show it
in numbers, beside what sets drawn at random would have in common.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skimp.errors import EvaluationError
from skimp.measure.scorer import evaluating
from skimp.methods.experts.method import prior_name
from skimp.methods.experts.section import BLIND, Experts
from skimp.methods.experts.select import choose, kept_by
from skimp.methods.experts.statistic import squares
from skimp.models.anatomy import Anatomy
from skimp.models.feed_forward import FeedForward, feed_forwards
from skimp.progress import SILENT, Progress

TOKENS = 64  # of a map; with COLUMNS, 32 kB a prompt in a document
COLUMNS = 256
_DRAWN = 2  # prompts that are mapped, so that their streaks can be compared
_TOP = 0.995  # the few values beyond this quantile would darken all others
_LEVELS = 255
_DIGITS = 4


@dataclass(frozen=True, eq=False)
class FlockingMap:
    """Relative magnitudes |z_tj| / ‖z_t‖ in the FF of one layer, for a few prompts.

    `values` holds a float32 tensor [tokens, columns] a prompt, in the order of the prompts: their
    first tokens, and every `every`-th of the layer's `neurons` from the first, in the model's own
    order. `layer` is counted in the dense model.
    """

    layer: int
    neurons: int
    every: int
    values: tuple[Tensor, ...]

    @property
    def top(self) -> float:
        """The quantile 0.995 of all values: where a colour scale should end."""
        return float(torch.cat([one.flatten() for one in self.values]).quantile(_TOP))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a token's values are one text, two hexadecimal digits each (255: `top`)."""
        top = float(f"{self.top:.3g}")
        scale = _LEVELS / top if top > 0 else 0.0
        rows = [(one * scale).round().clamp(max=_LEVELS).byte() for one in self.values]
        return {
            "layer": self.layer,
            "neurons": self.neurons,
            "every": self.every,
            "top": top,
            "prompts": [[bytes(row).hex() for row in one.tolist()] for one in rows],
        }


@dataclass(frozen=True)
class LayerOverlap:
    """What the experts of one layer have in common, as shares of a set, means over prompts.

    `prompts`: two prompts. `own`: the first and second half of one prompt. `other`: the first half
    of one and the second half of another. `chance`: two sets of that size drawn at random.
    """

    layer: int
    chance: float
    prompts: float
    own: float
    other: float


@dataclass(frozen=True)
class Overlap:
    """`pairs[i][j]`: share of prompt i's experts that prompt j chose too, mean over `layers`."""

    pairs: tuple[tuple[float, ...], ...]
    layers: tuple[LayerOverlap, ...]

    def mean(self, name: str) -> float:
        """Mean of a share of `LayerOverlap` over the layers."""
        return math.fsum(getattr(layer, name) for layer in self.layers) / len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        names = ("chance", "prompts", "own", "other")
        return {
            **{name: round(self.mean(name), _DIGITS) for name in names},
            "pairs": [[round(share, _DIGITS) for share in row] for row in self.pairs],
            "layers": [
                {"layer": one.layer, **{name: round(getattr(one, name), _DIGITS) for name in names}}
                for one in self.layers
            ],
        }


@dataclass(frozen=True)
class Flocking:
    """The map and the overlap for `prompts` (tokens of each).

    `overlap` is None for a single prompt, and where a choice does not look at the prompt.
    """

    prompts: tuple[int, ...]
    map: FlockingMap
    overlap: Overlap | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "prompts": list(self.prompts),
            "map": self.map.to_dict(),
            "overlap": self.overlap.to_dict() if self.overlap else None,
        }


@dataclass
class _Seen:
    """Sums of `squares` by layer, [halves, F] a prompt, and the neurons of the mapped layer."""

    sums: dict[int, list[Tensor]] = field(default_factory=dict)
    maps: list[Tensor] = field(default_factory=list)


@torch.inference_mode()
def flocking(
    model: nn.Module,
    section: Experts,
    prompts: Sequence[Sequence[int]],
    *,
    values: Mapping[str, Tensor] | None = None,
    layer: int | None = None,
    tokens: int = TOKENS,
    columns: int = COLUMNS,
    progress: Progress = SILENT,
) -> Flocking | None:
    """Watch the FFs while `model` reads each prompt; None where `section` keeps every neuron.

    Args:
        model: dense, or with a plan on it that has no experts.
        prompts: token ids, two or more each.
        values: a plan's fitted values, for a section with a prior.
        layer: the layer to map, as counted in the dense model; by default the middle one of those
            that are thinned.
        tokens, columns: how large a map may be.

    Raises:
        PlanError: a mixture of experts, or anything else but a plain or gated feed-forward.
        EvaluationError: no prompt, one that is too short, or no such layer.
    """
    if not prompts or min(map(len, prompts)) < 2:
        raise EvaluationError("prompts: give at least one, and two tokens or more in each.")
    wiring = feed_forwards(model, Anatomy.of(model))
    counts = {index: section.count(index, ffn.width) for index, ffn in wiring.items()}
    thinned = {index: ffn for index, ffn in wiring.items() if counts[index] < ffn.width}
    if not thinned:
        return None
    drawn = sorted(thinned)[len(thinned) // 2] if layer is None else layer
    if drawn not in wiring:
        raise EvaluationError(f"layer: {drawn} has no FF to be mapped; choose one of {[*wiring]}.")
    seen = _watch(model, {drawn: wiring[drawn], **thinned}, drawn, prompts, progress)
    every = math.ceil(wiring[drawn].width / columns)
    maps = tuple(_relative(z[:tokens])[:, ::every].cpu() for z in seen.maps)
    overlap = None
    if len(prompts) > 1 and section.select not in BLIND:
        sizes = [len(prompt) for prompt in prompts]
        priors = {index: (values or {}).get(prior_name(index)) for index in thinned}
        overlap = _overlap(seen.sums, sizes, section, counts, priors, sorted(thinned))
    return Flocking(
        tuple(map(len, prompts)), FlockingMap(drawn, wiring[drawn].width, every, maps), overlap
    )


def _watch(
    model: Any,
    wiring: Mapping[int, FeedForward],
    drawn: int,
    prompts: Sequence[Sequence[int]],
    progress: Progress,
) -> _Seen:
    seen = _Seen({index: [] for index in wiring})
    device = model.get_input_embeddings().weight.device
    with progress.task("watching neurons", len(prompts)) as step, evaluating(model):
        for prompt in prompts:
            half = len(prompt) // 2

            def see(index: int, z: Tensor, half: int = half) -> None:
                parts = (squares(z[None, :half]), squares(z[None, half:]))
                seen.sums[index].append(torch.cat(parts))
                if index == drawn and len(seen.maps) < _DRAWN:
                    seen.maps.append(z)

            with _hooks(model, wiring, see):
                ids = torch.as_tensor(prompt, device=device)[None]
                model(ids, use_cache=False, logits_to_keep=1)
            step()
    return seen


@contextmanager
def _hooks(model: nn.Module, wiring: Mapping[int, FeedForward], see: Any) -> Iterator[None]:
    """Call `see(layer, z [tokens, F])` with what the output map of every FF is given."""

    def hook(index: int, width: int) -> Any:
        # OPT's FF works on all tokens in one row.
        return lambda _, args: see(index, args[0].reshape(-1, width))

    handles = [
        model.get_submodule(ffn.output).register_forward_pre_hook(hook(index, ffn.width))
        for index, ffn in wiring.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _relative(z: Tensor) -> Tensor:
    """|z_tj| / ‖z_t‖ as float32; rows that are all zero, or not finite, become zero."""
    values = z.float().abs()
    values = values / values.amax(-1, keepdim=True)  # squares overflow long before values do
    return (values / torch.linalg.vector_norm(values, dim=-1, keepdim=True)).nan_to_num(0, 0, 0)


def common(one: Tensor, other: Tensor) -> Tensor:
    """Share of each set of `one` [P, F] (bool) that is in each of `other` [Q, F]: float64 [P, Q].

    Raises:
        ValueError: an empty set.
    """
    sizes = one.sum(-1, keepdim=True)
    if not sizes.all():
        raise ValueError("an empty set has nothing in common")
    return (one.double() @ other.double().T) / sizes


def _overlap(
    sums: Mapping[int, Sequence[Tensor]],
    sizes: Sequence[int],
    section: Experts,
    counts: Mapping[int, int],
    priors: Mapping[int, Tensor | None],
    thinned: Sequence[int],
) -> Overlap:
    whole = torch.tensor(sizes)
    first, apart = whole // 2, ~torch.eye(len(sizes), dtype=torch.bool)
    pairs = torch.zeros(len(sizes), len(sizes), dtype=torch.float64)
    layers = []
    for index in thinned:
        halves = torch.stack([*sums[index]]).cpu()  # [P, 2, F]

        def sets(part: Tensor, tokens: Tensor, index: int = index) -> Tensor:
            return _sets(part, tokens, section, counts[index], index, priors[index])

        experts = sets(halves.sum(1), whole)
        shares = common(experts, experts)
        across = common(sets(halves[:, 0], first), sets(halves[:, 1], whole - first))
        pairs += shares / len(thinned)
        layers.append(
            LayerOverlap(
                layer=index,
                chance=counts[index] / halves.shape[-1],
                prompts=float(shares[apart].mean()),
                own=float(across.diagonal().mean()),
                other=float(across[apart].mean()),
            )
        )
    return Overlap(tuple(map(tuple, pairs.tolist())), tuple(layers))


def _sets(
    sums: Tensor, tokens: Tensor, section: Experts, count: int, layer: int, prior: Tensor | None
) -> Tensor:
    """The experts of each row as the engine would choose them: bool, shaped as `sums` [P, F]."""
    chosen = choose(sums, tokens, count, section.apart(), layer, prior=prior)
    return kept_by(chosen, sums.shape[-1]).expand_as(sums)
