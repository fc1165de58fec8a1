"""Kinds of states, each with the tokens that are likely there: few rows of the head to read.

Learning to Screen (Chen et al., 2019): states are clustered, and a cluster's candidates are the
tokens that the full model found likely for its members. Here clusters are plain k-means, and for
tokens that a cluster has hardly seen all of the text speaks.
"""

import torch
from torch import Tensor

from skimp.methods.exit.gather import Likely
from skimp.methods.exit.train import learner
from skimp.methods.exit.values import CENTRES, REACH, SLOPE, TOKENS

KINDS = 64
_ROUNDS = 10
_COMMON = 20.0  # tokens' worth of the whole text's likely tokens that each kind is given
_SHRINK = 20.0  # likewise for its reach
_PARTS = 3  # of the documents, each in turn the one that shows how often candidates hold
_TRUST = 1e-3  # inverse penalty of reach's slope, on standardised states (docs/log.md)
_FREE = 30.0


def fit_screen(
    likely: Likely, kinds: int, candidates: int, vocabulary: int, seed: int = 0
) -> dict[str, Tensor]:
    """Centres, candidates and reach, under their names.

    Reach is learned from documents whose own tokens made no candidates, a third of them at a time:
    the log-odds of a hit are linear in the state, beside what its kind says.

    Raises:
        SkimpError: scikit-learn is not installed.
    """
    states = likely.states.float()
    centres = _centres(states, kinds, seed)
    kind = nearest(states, centres)
    parts = likely.document % _PARTS
    if len(parts.unique()) < _PARTS:
        parts = torch.arange(len(states)) % _PARTS
    masses = [_masses(likely, kind, parts == part, kinds, vocabulary) for part in range(_PARTS)]
    total = torch.stack(masses).sum(0)
    hit = torch.zeros(len(states))
    for part, own in enumerate(masses):
        found = torch.zeros(kinds, vocabulary, dtype=torch.bool)
        found.scatter_(1, _pick(total - own, candidates), True)
        rows = parts == part
        hit[rows] = found[kind[rows], likely.tokens[rows, 0]].float()
    reach, slope = _reach(states, kind, hit, kinds)
    tokens = _pick(total, candidates).int()
    return {CENTRES: centres, TOKENS: tokens, REACH: reach, SLOPE: slope}


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
    """Shares of tokens [C, V] summed up by kind."""
    tokens, shares = likely.tokens[counted], likely.shares[counted].float()
    rows = kind[counted].unsqueeze(-1).expand_as(tokens)
    found = torch.zeros(kinds, vocabulary)
    return found.index_put_((rows, tokens), shares, accumulate=True)


def _pick(masses: Tensor, candidates: int) -> Tensor:
    """The candidates [C, K] of each kind; tokens it has hardly seen go by the whole text."""
    common = masses.sum(0, keepdim=True)
    masses = masses + _COMMON * common / common.sum().clamp(min=1e-9)
    return masses.topk(candidates, dim=-1).indices.sort(-1).values


def _reach(states: Tensor, kind: Tensor, hit: Tensor, kinds: int) -> tuple[Tensor, Tensor]:
    """A constant for each kind [C] and a slope [d]: their sum gives the log-odds of a hit."""
    reach, slope = _log_odds(hit, kind, kinds), torch.zeros(states.shape[1])
    if hit.all() or not hit.any():
        return reach, slope
    mean, spread = states.mean(0), states.std(0, correction=0).clamp(min=1e-6)
    # Made large, what the kind says bears hardly any of the penalty.
    inputs = torch.cat([(states - mean) / spread, _FREE * reach[kind].unsqueeze(-1)], -1)
    found = learner().LogisticRegression(C=_TRUST, max_iter=300).fit(inputs.numpy(), hit.numpy())
    weights = torch.from_numpy(found.coef_[0]).float()
    slope = weights[:-1] / spread
    return reach * weights[-1] * _FREE + float(found.intercept_[0]) - slope @ mean, slope


def _log_odds(hit: Tensor, kind: Tensor, kinds: int) -> Tensor:
    hits = torch.zeros(kinds).index_add_(0, kind, hit)
    counts = torch.bincount(kind, minlength=kinds)
    overall = (hit.sum() + 0.5) / (len(hit) + 1)
    return ((hits + _SHRINK * overall) / (counts + _SHRINK)).logit()
