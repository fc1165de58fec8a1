"""How far a plan moves a model's predictions, token by token, on held-out text.

Every figure is paired with the dense model over the same tokens (design law 7): each batch runs
dense, then planned, so nothing but the running sums is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skimp.errors import EvaluationError
from skimp.measure.scorer import evaluating
from skimp.measure.statistics import clustered_mean
from skimp.models.some_logits import last_only
from skimp.progress import SILENT, Progress

Planned = nn.Module | Callable[[], AbstractContextManager[Any]]
CHUNK_ELEMENTS = 2**23  # positions x vocabulary in fp32 at once: 32 MB for each of the few copies
LOGIT_ELEMENTS = 2**27  # positions x vocabulary held per model and batch, in the model's dtype


@dataclass(frozen=True)
class Fidelity:
    """Dense against planned over the same tokens; losses and divergence in nats per token.

    Attributes:
        perplexity_dense, perplexity_planned: exp of the mean losses.
        loss_difference: planned - dense; its 95% interval is paired over documents.
        kl: mean of KL(dense || planned) over positions; not a number where it is not measured.
        top1_agreement: share of positions where both find the same token likeliest.
        lost: share where dense was right and planned is wrong; `gained` the converse; `flips`
            both together.
        tokens, documents: how many were predicted, and in how many documents.
    """

    perplexity_dense: float
    perplexity_planned: float
    loss_dense: float
    loss_planned: float
    loss_difference: float
    loss_interval: tuple[float, float]
    kl: float
    kl_interval: tuple[float, float]
    top1_agreement: float
    flips: float
    lost: float
    gained: float
    tokens: int
    documents: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: unbounded intervals (of a single document) become None, as does a
        KL that is not measured."""
        data = asdict(self)
        data["kl"] = None if math.isnan(self.kl) else self.kl
        for name in ("loss_interval", "kl_interval"):
            data[name] = [bound if math.isfinite(bound) else None for bound in data[name]]
        return data


def windows(text: str, tokenizer: Any, window: int = 256, tokens: int = 4096) -> list[Tensor]:
    """Cut `text` into non-overlapping documents [window] of about `tokens` tokens in all.

    A tokenizer that begins texts with a special token (BOS) begins every window with it, as the
    model expects. The remainder that does not fill a window is dropped.

    Raises:
        EvaluationError: no tokenizer, a window below 2, or the text does not fill one window.
    """
    if tokenizer is None:
        raise EvaluationError("tokenizer: this model has none, so text cannot be cut into tokens.")
    if window < 2 or tokens < window:
        raise EvaluationError(
            f"window: {window} of {tokens} tokens; a window needs at least 2 and at most all."
        )
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    first = _beginning(tokenizer)
    body = window - len(first)
    if body < 1 or len(ids) < body:
        raise EvaluationError(
            f"text: {len(ids)} tokens found, but {max(body, 1)} are needed to fill one window of "
            f"{window}; give a longer text or a smaller window."
        )
    count = min(len(ids) // body, tokens // window)
    return [torch.tensor(first + ids[i * body : (i + 1) * body]) for i in range(count)]


def _beginning(tokenizer: Any) -> list[int]:
    found = tokenizer("a")["input_ids"]
    first = getattr(tokenizer, "bos_token_id", None)
    return [first] if first is not None and found[:1] == [first] else []


def fidelity(
    model: nn.Module,
    planned: Planned,
    documents: Sequence[Tensor],
    *,
    prompt: int = 0,
    batch_tokens: int = 2048,
    progress: Progress = SILENT,
) -> Fidelity:
    """Compare `model` with its planned self on token `documents`, each [tokens].

    Args:
        model: dense outside the planned context.
        planned: a function that gives a context in which `model` carries the plan
            (`lambda: skimp.apply(model, plan)`), or another model with the same vocabulary.
        prompt: tokens at the beginning of each document that run as a prefill; the rest runs
            through its KV cache and is what is measured. 0 runs each document in one pass and
            measures all of it; plans that act while decoding only need a prompt to show.
        batch_tokens: tokens per forward pass.

    Raises:
        EvaluationError: no documents, or one too short to predict anything in.
    """
    lengths = [len(document) for document in documents]
    if not lengths or min(lengths) < prompt + 2:
        raise EvaluationError(
            f"documents: {len(lengths)} given, the shortest of {min(lengths, default=0)} tokens, "
            f"but at least one is needed and {prompt + 2} tokens in each."
        )
    other = planned if isinstance(planned, nn.Module) else model
    sums = torch.zeros(len(documents), len(_SUMS), dtype=torch.float64)
    with progress.task("fidelity", len(documents)) as step, evaluating(model), evaluating(other):
        for numbers in batches(model, lengths, batch_tokens):
            batch = [documents[number] for number in numbers]
            dense = _logits(model, batch, prompt)
            if isinstance(planned, nn.Module):
                changed = _logits(planned, batch, prompt)
            else:
                with planned():
                    changed = _logits(model, batch, prompt)
            for row, number in enumerate(numbers):
                target = documents[number][prompt + 1 :] if prompt else documents[number][1:]
                size = len(target)
                sums[number] = document_sums(dense[row, :size], changed[row, :size], target)
                step()
    return summary(sums)


# What is summed over a document's positions, in order.
_SUMS = ("tokens", "dense", "planned", "kl", "agree", "lost", "gained")


def batches(model: nn.Module, lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Document numbers of similar length, longest first, within the budget of tokens and logits."""
    config: Any = model.config
    budget = min(batch_tokens, LOGIT_ELEMENTS // config.get_text_config().vocab_size)
    ordered = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    while ordered:
        size = max(1, budget // lengths[ordered[0]])
        yield ordered[:size]
        ordered = ordered[size:]


def _logits(model: nn.Module, documents: Sequence[Tensor], prompt: int) -> Tensor:
    """[documents, positions, vocabulary] predicting what follows the prompt (or everything)."""
    runner: Any = model
    device = runner.get_input_embeddings().weight.device
    ids = nn.utils.rnn.pad_sequence(list(documents), batch_first=True).to(device)
    lengths = torch.tensor([len(document) for document in documents], device=device)
    real = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    mask = None if bool(real.all()) else real
    with torch.inference_mode():
        if not prompt:
            return runner(ids, attention_mask=mask, use_cache=False).logits
        last = last_only(runner, prompt, ids.device)
        cache = runner(ids[:, :prompt], use_cache=True, **last).past_key_values
        rest = ids[:, prompt:]
        positions = torch.arange(prompt, ids.shape[1], device=device).expand(len(documents), -1)
        return runner(
            rest,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits


def document_sums(dense: Tensor, planned: Tensor, target: Tensor) -> Tensor:
    """Sums over one document: logits [positions, vocabulary] twice, targets [positions]."""
    sums = torch.zeros(len(_SUMS), dtype=torch.float64)
    size = max(1, CHUNK_ELEMENTS // dense.shape[-1])
    for start in range(0, len(target), size):
        part = slice(start, start + size)
        p = dense[part].float().log_softmax(-1)
        q = planned[part].float().log_softmax(-1)
        true = target[part].to(p.device)
        kl = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1)
        best_p, best_q = p.argmax(-1), q.argmax(-1)
        right_p, right_q = best_p == true, best_q == true
        found = (
            torch.ones_like(kl),
            -p.gather(-1, true[:, None])[:, 0],
            -q.gather(-1, true[:, None])[:, 0],
            kl,
            best_p == best_q,
            right_p & ~right_q,
            right_q & ~right_p,
        )
        sums += torch.stack([values.double().sum() for values in found]).cpu()
    return sums


def summary(sums: Tensor) -> Fidelity:
    """What the sums of all documents, one a row, come to."""
    counts, dense, planned, kl, agree, lost, gained = sums.T.numpy()
    tokens = float(counts.sum())
    before, after = float(dense.sum()) / tokens, float(planned.sum()) / tokens
    difference = clustered_mean(planned - dense, counts)
    divergence = clustered_mean(kl, counts)
    return Fidelity(
        perplexity_dense=_exp(before),
        perplexity_planned=_exp(after),
        loss_dense=before,
        loss_planned=after,
        loss_difference=difference.estimate,
        loss_interval=difference.pair,
        kl=divergence.estimate,
        kl_interval=(max(0.0, divergence.low), divergence.high),
        top1_agreement=float(agree.sum()) / tokens,
        flips=float(lost.sum() + gained.sum()) / tokens,
        lost=float(lost.sum()) / tokens,
        gained=float(gained.sum()) / tokens,
        tokens=round(tokens),
        documents=len(sums),
    )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
