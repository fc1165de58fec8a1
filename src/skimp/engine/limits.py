"""What the engine refuses, and what would fit instead."""

from collections.abc import Sequence

import torch
from torch import Tensor

from skimp.engine.runners import Runner
from skimp.engine.state import State
from skimp.errors import RequestError
from skimp.models.anatomy import Anatomy
from skimp.models.placement import available_bytes, largest


def check_prompts(prompts: Sequence[Sequence[int]], new: int, anatomy: Anatomy) -> None:
    """Raise RequestError unless the prompts and `new` tokens fit the model's context."""
    if not prompts:
        raise RequestError("prompts: there is none.")
    if new < 1:
        raise RequestError(f"new: {new} tokens cannot be generated; ask for at least 1.")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise RequestError(f"prompt {index}: it has no tokens; give some text to continue.")
        wrong = next((token for token in prompt if not 0 <= token < anatomy.vocabulary), None)
        if wrong is not None:
            raise RequestError(
                f"prompt {index}: token {wrong} is not in the model's vocabulary of "
                f"{anatomy.vocabulary}."
            )
    longest, context = max(map(len, prompts)), anatomy.context_length
    if context is None or longest + new <= context:
        return
    if longest >= context:
        raise RequestError(
            f"prompt: its {longest} tokens fill the model's context of {context}; shorten it."
        )
    raise RequestError(
        f"new: a prompt of {longest} tokens and {new} new ones exceed the model's context of "
        f"{context}; ask for at most {context - longest} new tokens."
    )


def check_room(state: State, tokens: int) -> None:
    """Raise RequestError unless `tokens` more columns fit the request."""
    if tokens < 1:
        raise RequestError("tokens: there is none to read.")
    if tokens > state.room:
        raise RequestError(
            f"tokens: {tokens} more do not fit the request's {state.room}; ask `prefill` for room "
            "with a larger `new`."
        )


def check_tokens(state: State, tokens: Tensor, vocabulary: int, *, dimensions: int) -> None:
    """Raise RequestError unless `tokens`, [B] or [B, Q], are the vocabulary's, for each sequence.

    Their values are looked at on a CPU only; on a GPU every step would have to wait for it.
    """
    if tokens.dim() != dimensions or len(tokens) != state.batch:
        raise RequestError(
            f"tokens: a tensor {list(tokens.shape)} is not one of {dimensions} dimensions for a "
            f"batch of {state.batch}; give every sequence its own."
        )
    if tokens.device.type != "cpu" or not tokens.numel():
        return
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise RequestError(
            f"tokens: {wrong} is not in the model's vocabulary of {vocabulary}; give ids from 0 to "
            f"{vocabulary - 1}."
        )


def check_memory(runner: Runner, batch: int, capacity: int, device: torch.device) -> None:
    """Raise RequestError, saying what would fit, if the cache exceeds the memory that is free."""
    free = available_bytes(device)
    wanted = runner.cache_bytes(batch, capacity)
    if wanted <= free:
        return
    fits = largest(batch, lambda rows: runner.cache_bytes(rows, capacity) <= free)
    length = largest(capacity, lambda tokens: runner.cache_bytes(1, tokens) <= free)
    if fits:
        remedy = f"a batch of {fits} would fit"
    elif length > 1:  # one token to read and one to write
        remedy = f"{length} tokens of one sequence would fit"
    else:
        remedy = "free some memory or take a smaller model"
    raise RequestError(
        f"batch: the KV cache of {batch} sequences of {capacity} tokens needs "
        f"{wanted / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; {remedy}."
    )
