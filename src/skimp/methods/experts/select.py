"""Which neurons an answer keeps, given what the prompt said about them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skimp.methods.experts import statistic
from skimp.methods.experts.section import BLIND, Experts

_MOST_ORDERED = 62  # bits that tell sequences apart


@dataclass(frozen=True)
class Chosen:
    """The experts of one FF for a batch.

    `rows` int32 [k], ascending: neurons that any sequence keeps. `mask` bool [B, k]: which of them
    each sequence keeps, or None where all keep all. `fill` [B, d]: what the FF's output gains for
    the neurons left out, or None for nothing. `order` int32 [k]: a permutation that puts neurons
    together which the same sequences keep, or None.
    """

    rows: Tensor
    mask: Tensor | None
    fill: Tensor | None = None
    order: Tensor | None = None


def choose(
    sums: Tensor,
    counts: Tensor,
    count: int,
    section: Experts,
    layer: int,
    *,
    magnitude: Tensor | None = None,
    prior: Tensor | None = None,
) -> Chosen:
    """Choose `count` of F neurons for every sequence.

    Args:
        sums: of `statistic.squares` [B, F], and the tokens they were taken over, `counts` [B].
        count: as `section.count` gives it; whole blocks, or all F.
        layer: index in the dense model; with the section's seed it fixes all random choices, so a
            sequence gets the same experts whatever else is in its batch.
        magnitude: [F], for `select: magnitude`.
        prior: [F], for a section that needs one. It also stands in for a prompt without tokens,
            which keeps all neurons otherwise; random and magnitude need no prompt.

    Raises:
        ValueError: a magnitude or prior that is needed and missing, or a count below 1.
    """
    width = sums.shape[-1]
    if count < 1:
        raise ValueError(f"{count} neurons cannot be chosen")
    if count >= width or width % section.block:
        return Chosen(torch.arange(width, dtype=torch.int32, device=sums.device), None)
    units = max(1, count // section.block)
    weights = _weights(sums, counts, section, magnitude, prior)
    chosen = _pick(weights, units, section, layer)
    if section.select not in BLIND and prior is None:
        evidence = counts > 0 if section.batch == "sequence" else (counts > 0).any().reshape(1)
        chosen |= ~evidence.to(chosen.device).unsqueeze(-1)
    kept = chosen.repeat_interleave(section.block, dim=-1)
    rows = kept.any(0).nonzero().flatten()
    mask = kept[:, rows]
    return Chosen(rows.to(torch.int32), None if mask.all() else mask)


def widened(chosen: Chosen, width: int) -> Chosen:
    """The same experts among all `width` rows, of which sequences keep those that they kept."""
    rows = torch.arange(width, dtype=torch.int32, device=chosen.rows.device)
    return Chosen(rows, kept_by(chosen, width), chosen.fill)


def joined(parts: Sequence[Chosen], width: int) -> Chosen:
    """The experts of one FF of `width` neurons for sequences that each chose alone."""
    kept = torch.cat([kept_by(part, width) for part in parts])
    rows = kept.any(0).nonzero().flatten()
    mask = kept[:, rows]
    fills = [part.fill for part in parts if part.fill is not None]
    if fills:  # a sequence that keeps all has none
        none = torch.zeros_like(fills[0])
        fill = torch.cat([none if part.fill is None else part.fill for part in parts])
    else:
        fill = None
    return Chosen(rows.to(torch.int32), None if mask.all() else mask, fill)


def kept_by(chosen: Chosen, width: int) -> Tensor:
    """Which of all `width` neurons each sequence keeps: bool [B, width], or [1, width] where all
    sequences keep the same."""
    batch = 1 if chosen.mask is None else len(chosen.mask)
    kept = torch.zeros(batch, width, dtype=torch.bool, device=chosen.rows.device)
    kept[:, chosen.rows.long()] = True if chosen.mask is None else chosen.mask
    return kept


def ordered(chosen: Chosen) -> Chosen:
    """With the `order` of its neurons, where sequences differ in what they keep."""
    if chosen.mask is None or len(chosen.mask) > _MOST_ORDERED:
        return chosen
    places = torch.arange(len(chosen.mask), device=chosen.mask.device)
    keepers = (chosen.mask.long() << places.unsqueeze(-1)).sum(0)
    return replace(chosen, order=keepers.argsort(stable=True).to(torch.int32))


def left_out(chosen: Chosen, values: Tensor) -> Tensor:
    """`values` [B, F] of the neurons that were not chosen, 0 for those that were."""
    return values.masked_fill(kept_by(chosen, values.shape[-1]), 0)


def magnitudes(weights: Sequence[Tensor]) -> Tensor:
    """The product over the input maps [F, hidden] of their rows' norms: float32 [F]."""
    norms = [torch.linalg.vector_norm(weight.float(), dim=1) for weight in weights]
    return torch.stack(norms).prod(0)


def _weights(
    sums: Tensor,
    counts: Tensor,
    section: Experts,
    magnitude: Tensor | None,
    prior: Tensor | None,
) -> Tensor:
    """What speaks for each block [B, F / block], or [1, F / block] where all sequences agree."""
    if section.needs_prior and prior is None:
        raise ValueError("the section needs a prior")
    if section.select == "random":
        return sums.new_ones(1, sums.shape[-1] // section.block, dtype=torch.float32)
    if section.select == "magnitude":
        if magnitude is None:
            raise ValueError("the section needs the magnitudes")
        return _roots(magnitude.float().to(sums.device).unsqueeze(0), section.block)
    if section.batch == "shared":
        scores, counts = statistic.shared(sums, counts), counts.sum().reshape(1)
    else:
        scores = statistic.score(sums)
    if prior is None:
        return _roots(scores, section.block)
    seen = (counts > 0).to(scores.device).unsqueeze(-1)
    share = torch.where(seen, section.prior, 1.0)
    fused = (1 - share) * _ranks(scores) + share * _ranks(prior.float().to(scores.device))
    means = fused.unflatten(-1, (-1, section.block)).mean(-1)
    return means if section.needs_prior else torch.where(seen, _roots(scores, section.block), means)


def _roots(scores: Tensor, block: int) -> Tensor:
    """The root of the sum of squares of each block's scores."""
    return torch.linalg.vector_norm(scores.unflatten(-1, (-1, block)), dim=-1)


def _ranks(values: Tensor) -> Tensor:
    """0 for the least to F - 1 for the greatest along the last dimension, float32.

    Of equals the first ranks highest, as it does in a top-k.
    """
    order = values.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(values.shape[-1] - 1, -1, -1, device=values.device, dtype=torch.float32)
    return torch.empty_like(values).scatter_(-1, order, places.expand_as(values))


def _pick(weights: Tensor, units: int, section: Experts, layer: int) -> Tensor:
    """Which `units` of the blocks each row takes: bool, shaped as `weights` [B, F / block]."""
    if section.select in ("topk", "magnitude"):
        return _top(weights, units)
    drawn = weights.log() + _noise(weights.shape[-1], section.seed, layer).to(weights.device)
    if section.select == "topk_sample":
        drawn = drawn.masked_fill(_top(weights, units - units // 2), torch.inf)
    return _top(drawn, units)


def _top(keys: Tensor, units: int) -> Tensor:
    """The greatest of each row, the first among equals."""
    order = keys.argsort(dim=-1, descending=True, stable=True)[..., :units]
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(-1, order, True)


def _noise(size: int, seed: int, layer: int) -> Tensor:
    """Gumbel noise [size]: the greatest of log p + noise are a draw without replacement from p."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + layer) % 2**63)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    return -(-uniform.clamp(min=1e-300).log()).log().float()
