"""Continuations scored as they are served: the context as a prefill, the rest behind its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from skimp.errors import EvaluationError
from skimp.measure.likelihood import Likelihood, head_sees, likelihood_of
from skimp.measure.packing import Scored

PHASED_ROWS = 8  # continuations of one context run together, each behind its own cache


def phased(model: Any, sequences: Sequence[Scored]) -> Iterator[dict[int, Likelihood]]:
    """Likelihoods of `sequences` by index, some at a time; those of one context go together.

    Raises:
        EvaluationError: the model's KV cache cannot be copied.
    """
    groups: dict[tuple[int, ...], list[Scored]] = {}
    for sequence in sequences:
        context = sequence.tokens[: len(sequence.tokens) - len(sequence.targets) + 1]
        groups.setdefault(context, []).append(sequence)
    for context in sorted(groups, key=len, reverse=True):
        found: dict[int, Likelihood] = {}
        for start in range(0, len(groups[context]), PHASED_ROWS):
            some = groups[context][start : start + PHASED_ROWS]
            found.update(_continued(model, context, some))
        yield found


def _continued(
    model: Any, context: tuple[int, ...], sequences: Sequence[Scored]
) -> dict[int, Likelihood]:
    """Prefill `context` once, then run the continuations behind copies of its cache."""
    device, size = model.get_input_embeddings().weight.device, len(context)
    rest = [sequence.tokens[size:] for sequence in sequences]
    width = max(map(len, rest))
    last = torch.tensor([size - 1], device=device)
    with torch.inference_mode(), head_sees(model, last) as seen:
        out = model(torch.tensor([context], device=device), use_cache=True)
    first = out.logits[0, -1:] if not seen else out.logits[0]
    if width == 0:
        return {s.index: likelihood_of(first, s.targets) for s in sequences}
    try:
        out.past_key_values.batch_repeat_interleave(len(sequences))
    except AttributeError as error:
        raise EvaluationError(
            "way: phased needs a KV cache that can be copied for each continuation, which "
            f"{type(model).__name__} does not give; use plain."
        ) from error
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.ones(len(sequences), size + width, dtype=torch.long)
    for row, tokens in enumerate(rest):
        ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[row, size + len(tokens) :] = 0
    positions = torch.arange(size, size + width).expand(len(sequences), -1)
    with torch.inference_mode():
        later = model(
            ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=out.past_key_values,
            use_cache=True,
        ).logits
    return {
        s.index: likelihood_of(torch.cat([first, later[row, : len(rest[row])]]), s.targets)
        for row, s in enumerate(sequences)
    }
