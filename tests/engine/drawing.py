"""Logits to draw from, and transformers' own filters to hold sampling against."""

from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from skimp.engine.sampling import Sampler, Sampling

NO_IDS = torch.zeros(1, 0, dtype=torch.long)
CASES = [
    Sampling(temperature=1, seed=1),
    Sampling(temperature=0.5, seed=2),
    Sampling(temperature=2.5, top_k=5, seed=3),
    Sampling(temperature=1, top_p=0.8, seed=4),
    Sampling(temperature=1.3, min_p=0.1, seed=5),
    Sampling(temperature=1.5, top_k=9, top_p=0.9, min_p=0.05, seed=6),
]


def random_logits(*shape: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator)


def theirs(logits: Tensor, sampling: Sampling, ids: Any = NO_IDS) -> Tensor:
    """Probabilities [B, V] in float64 as transformers filters them."""
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    steps.append(TopPLogitsWarper(float(sampling.top_p)))
    steps.append(MinPLogitsWarper(float(sampling.min_p)))
    return steps(ids, logits.double()).softmax(-1)


def drawn(logits: Tensor, sampling: Sampling, picks: int) -> Tensor:
    """Tokens [picks, B] drawn from the same logits [B, V] again and again."""
    sampler = Sampler(sampling, len(logits), logits.shape[1], "cpu")
    return torch.stack([sampler.pick(logits) for _ in range(picks)])
