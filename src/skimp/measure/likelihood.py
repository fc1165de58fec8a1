"""From logits at scored positions to log-likelihoods; the head sees those positions only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skimp.measure.packing import Layout


class Likelihood(NamedTuple):
    """`logprob` of a continuation in nats, and whether greedy decoding would produce it.

    `depths`: after how many layers each of its tokens was decided; empty without early exits.
    """

    logprob: float
    greedy: bool
    depths: tuple[int, ...] = ()


@contextmanager
def head_sees(model: Any, position: Tensor) -> Iterator[list[bool]]:
    """Let the output head see only the hidden states at flat `position`, as [1, n, hidden].

    `logits_to_keep` would take one set of positions for all rows; this takes any, in every family,
    and keeps what comes after the head (soft caps, scales). The yielded list is non-empty once the
    head has been called.
    """
    seen: list[bool] = []

    def narrow(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        seen.append(True)
        return (hidden.flatten(0, 1)[position].unsqueeze(0), *arguments[1:])

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


def likelihoods(
    logits: Tensor, tokens: Tensor, layout: Layout, depths: Tensor | None = None
) -> dict[int, Likelihood]:
    """Sum each sequence's scored tokens.

    Args:
        logits: [positions, vocabulary] in any float dtype.
        tokens: what the model emits there, [positions]; `depths` [positions]: after which layers.
    """
    slot, target = layout.slot.to(logits.device), layout.target.to(logits.device)
    # In blocks: a whole copy in fp32 would double the memory of a half-precision batch.
    normaliser = torch.cat([block.float().logsumexp(-1) for block in logits.split(64)])
    logprob = (logits[slot, target].float() - normaliser[slot]).double().cpu()
    right = tokens.cpu()[layout.slot] == layout.target
    deep = [] if depths is None else depths[layout.slot].tolist()
    found, start = {}, 0
    for sequence in layout.owner:
        stop = start + len(sequence.targets)
        found[sequence.index] = Likelihood(
            float(logprob[start:stop].sum()),
            bool(right[start:stop].all()),
            tuple(deep[start:stop]),
        )
        start = stop
    return found


def likelihood_of(logits: Tensor, targets: Sequence[int]) -> Likelihood:
    """Likelihood of `targets` [n] under logits [n, vocabulary]."""
    target = torch.tensor(targets, device=logits.device)
    logprob = logits.float().log_softmax(-1)[torch.arange(len(target)), target]
    return Likelihood(float(logprob.double().sum()), bool((logits.argmax(-1) == target).all()))
