"""Kinds of states, each with the tokens that are likely there: few rows of the head to read.

Learning to Screen (Chen et al., 2019): states are clustered, and a cluster's candidates are the
tokens that the full model found likely for its members. Here clusters are plain k-means, and for
tokens that a cluster has hardly seen all of the text speaks.
"""

import torch
from torch import Tensor

from skimp.methods.exit.gather import Likely
from skimp.methods.exit.values import CENTRES, REACH, TOKENS

KINDS = 64
_ROUNDS = 10
_COMMON = 20.0  # tokens' worth of the whole text's likely tokens that each kind is given
_SHRINK = 20.0  # likewise for its reach


def fit_screen(
    likely: Likely, kinds: int, candidates: int, vocabulary: int, seed: int = 0
) -> dict[str, Tensor]:
    """Centres, candidates and reach, under their names.

    Reach is measured on a third of the documents, from which no candidates were taken.
    """
    states = likely.states.float()
    centres = _centres(states, kinds, seed)
    kind = nearest(states, centres)
    apart = likely.document % 3 == 0
    if apart.all() or not apart.any():
        apart = torch.arange(len(states)) % 3 == 0
    seen = _masses(likely, kind, ~apart, kinds, vocabulary)
    honest = _pick(seen, candidates)
    tokens = _pick(seen + _masses(likely, kind, apart, kinds, vocabulary), candidates)
    found = torch.zeros(kinds, vocabulary, dtype=torch.bool).scatter_(1, honest, True)
    hit = found[kind[apart], likely.tokens[apart, 0]].float()
    reach = _log_odds(hit, kind[apart], kinds)
    return {CENTRES: centres, TOKENS: tokens.int(), REACH: reach}


def nearest(states: Tensor, centres: Tensor) -> Tensor:
    """The kind [n] of states [n, d]: the nearest of the centres [C, d]."""
    return (states @ centres.T - 0.5 * centres.square().sum(-1)).argmax(-1)


def _centres(states: Tensor, kinds: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(states), generator=generator)
    # With fewer states than kinds some centres are equal, and the later ones never nearest.
    centres = states[order[torch.arange(kinds) % len(states)]].clone()
    for _ in range(_ROUNDS):
        kind = nearest(states, centres)
        sums = torch.zeros_like(centres).index_add_(0, kind, states)
        counts = torch.bincount(kind, minlength=kinds).unsqueeze(-1)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def _masses(likely: Likely, kind: Tensor, counted: Tensor, kinds: int, vocabulary: int) -> Tensor:
    """Shares of tokens [C, V] summed up by kind, with some of the whole text's everywhere."""
    tokens, shares = likely.tokens[counted], likely.shares[counted].float()
    rows = kind[counted].unsqueeze(-1).expand_as(tokens)
    found = torch.zeros(kinds, vocabulary)
    found.index_put_((rows, tokens), shares, accumulate=True)
    common = found.sum(0, keepdim=True)
    return found + _COMMON * common / common.sum().clamp(min=1e-9)


def _pick(masses: Tensor, candidates: int) -> Tensor:
    return masses.topk(candidates, dim=-1).indices.sort(-1).values


def _log_odds(hit: Tensor, kind: Tensor, kinds: int) -> Tensor:
    hits = torch.zeros(kinds).index_add_(0, kind, hit)
    counts = torch.bincount(kind, minlength=kinds)
    overall = (hit.sum() + 0.5) / (len(hit) + 1)
    return ((hits + _SHRINK * overall) / (counts + _SHRINK)).logit()
