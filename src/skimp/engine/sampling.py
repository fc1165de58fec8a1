"""The next token: filters on the logits, and one stream of random numbers for every sequence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skimp.errors import RequestError

_BLOCK = 256  # picks that one refill of random numbers lasts for
_HEAD = 1024  # likeliest tokens that are tried for top-p before everything is sorted

# Past these float32 would turn a factor, or a logit times it, into 0 or infinity.
_SMALLEST, _LARGEST = 1e-30, 1e30

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value >= 0, "a finite number, 0 or more"),
    "top_p": (lambda value: 0 < value <= 1, "a number above 0 and up to 1"),
    "min_p": (lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda value: value > 0, "a finite number above 0; 1 is none"),
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the defaults take the likeliest, the first of equals.

    `temperature` divides the logits; 0 is greedy. `top_k` (Fan et al. 2018) keeps so many likeliest
    tokens, 0 all. `top_p` (Holtzman et al. 2020) keeps the shortest list of likeliest tokens that
    holds this probability. `min_p` (Nguyen et al. 2024) keeps tokens at least this share as likely
    as the likeliest. `repetition_penalty` (Keskar et al. 2019, CTRL) divides positive logits of
    tokens that the sequence already has, and multiplies negative ones. `seed` starts the draws.

    Raises:
        RequestError: a setting is out of range; the message names it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (fits, wanted) in _RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and math.isfinite(value)
            if not (number and fits(value)):
                raise RequestError(f"{name}: {value!r} does not fit; give {wanted}.")
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise RequestError(f"{name}: {value!r} does not fit; give a whole number from 0.")

    @property
    def greedy(self) -> bool:
        """Whether no random number is needed."""
        return self.temperature == 0


def weights(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities up to a factor, float32 [B, V], of logits [B, V] at a temperature above 0.

    The likeliest token has weight 1, a filtered one 0. The filters follow each other as in
    transformers: temperature first, so that top-p and min-p judge the distribution that is drawn
    from; then top-k, top-p of what top-k left, and min-p, which the others do not disturb because
    they keep the likeliest token. The repetition penalty comes before all of them, since it is
    defined on the model's own logits (`Sampler` applies it).

    Tokens as likely as the last one that a filter keeps are kept with it: which of several equals
    came first in a sort would else decide, and low-precision logits hold many equals.
    """
    logits = logits.float()
    # Taking the largest away first keeps any temperature from overflowing.
    found = logits - logits.amax(-1, keepdim=True)
    found = found.div_(_tamed(sampling.temperature)).exp_()
    ordered = None
    if 0 < sampling.top_k < found.shape[-1]:
        ordered = found.topk(sampling.top_k).values
        found = _cut(found, ordered[:, -1:])
    if sampling.top_p < 1:
        found = _cut(found, _nucleus_edge(found, ordered, sampling.top_p))
    if sampling.min_p > 0:
        found = _cut(found, sampling.min_p)
    return found


def draw(found: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [B], int64, by weights [B, V] and one random number in [0, 1) a sequence, [B, 1].

    A token's share of the line from 0 to the sum of the weights is the chance that it is drawn, so
    one of weight 0 never is. Weights that are not numbers give a token of the vocabulary all the
    same, never an index past it; `check` is what reports them.
    """
    ends = found.cumsum(-1, dtype=uniform.dtype)
    # The largest number below 1 times the sum still rounds to less than the sum.
    tokens = torch.searchsorted(ends, uniform * ends[:, -1:], right=True)
    return tokens.squeeze(-1).clamp_(max=found.shape[-1] - 1)


def check(logits: Tensor) -> None:
    """Refuse logits [B, V] that no token can be drawn from. Waits for the device.

    Raises:
        RequestError: a sequence's logits hold NaN or infinity, or forbid every token.
    """
    largest = logits.amax(-1).float()  # NaN wins over every number
    good = largest.isfinite()
    if bool(good.all()):
        return
    rows = (~good).nonzero().flatten().tolist()
    where = f"sequence{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))} of the batch"
    if bool((largest == -torch.inf).any()):
        raise RequestError(
            f"the model's logits forbid every token for {where}; see what masks them."
        )
    raise RequestError(
        f"the model's logits hold NaN or infinity for {where}; load it in bfloat16 or float32, or "
        "leave its plan off."
    )


class Sampler:
    """Draws the tokens of one request; what it has seen and drawn belongs to that request.

    A sequence's random numbers follow from the seed and its row alone, on every device, so its
    text does not depend on what else is in the batch.
    """

    def __init__(
        self, sampling: Sampling, batch: int, vocabulary: int, device: torch.device | str
    ) -> None:
        self._sampling = sampling
        self._shape = (batch, vocabulary)
        self._device = torch.device(device)
        self._seen: Tensor | None = None
        self._streams: list[np.random.Generator] = []
        self._uniforms, self._used = torch.empty(0), _BLOCK
        if sampling.repetition_penalty != 1:
            # A request may begin inside inference mode and go on outside, or the other way round.
            with torch.inference_mode(False):
                # The last column takes what a mask leaves out.
                self._seen = torch.zeros(
                    batch, vocabulary + 1, dtype=torch.bool, device=self._device
                )
        if not sampling.greedy:
            seeds = (np.random.SeedSequence(sampling.seed, spawn_key=(r,)) for r in range(batch))
            self._streams = [np.random.default_rng(seed) for seed in seeds]
            self._refill()

    @torch.no_grad()
    def see(self, ids: Tensor, mask: Tensor | None = None) -> None:
        """Note the prompt's tokens [B, P] for the repetition penalty; `mask` is False at padding.

        Raises:
            ValueError: `ids` or `mask` is of another shape.
        """
        if self._seen is None:
            return
        batch, vocabulary = self._shape
        if ids.ndim != 2 or len(ids) != batch or (mask is not None and mask.shape != ids.shape):
            raise ValueError(f"ids and mask must be [{batch}, P], not {tuple(ids.shape)}")
        ids = ids.to(self._device)
        if mask is not None:
            ids = ids.masked_fill(~mask.to(self._device, torch.bool), vocabulary)
        self._seen.scatter_(1, ids, True)

    @torch.no_grad()
    def pick(self, logits: Tensor) -> Tensor:
        """The next token of each sequence, int64 [B], by logits [B, V] of any float dtype.

        On a GPU nothing waits for the device. Logits that are not numbers give some token; call
        `check` where the host waits anyway.

        Raises:
            ValueError: the logits are not of this request's shape.
        """
        if logits.shape != self._shape:
            raise ValueError(f"logits must be {self._shape}, not {tuple(logits.shape)}")
        logits = self._penalised(logits.float())
        if self._sampling.greedy:
            tokens = logits.argmax(-1)
        else:
            tokens = draw(weights(logits, self._sampling), self._next_uniform())
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        return tokens

    def _penalised(self, logits: Tensor) -> Tensor:
        if self._seen is None:
            return logits
        penalty = _tamed(self._sampling.repetition_penalty)
        lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
        return torch.where(self._seen[:, :-1], lowered, logits)

    def _next_uniform(self) -> Tensor:
        if self._used == _BLOCK:
            self._refill()
        self._used += 1
        return self._uniforms[:, self._used - 1 : self._used]

    def _refill(self) -> None:
        """Draw for many picks at once, so that a pick itself copies nothing to the device."""
        # Apple's GPUs have no float64; elsewhere it keeps rare tokens at their true rate.
        dtype = np.float32 if self._device.type == "mps" else np.float64
        table = torch.from_numpy(np.stack([s.random(_BLOCK, dtype) for s in self._streams]))
        if self._device.type == "cuda":  # only a copy from pinned memory does not wait
            table = table.pin_memory()
        self._uniforms = table.to(self._device, non_blocking=self._device.type == "cuda")
        self._used = 0


def _tamed(factor: float) -> float:
    return min(max(factor, _SMALLEST), _LARGEST)


def _cut(found: Tensor, least: Tensor | float) -> Tensor:
    return found.masked_fill_(found < least, 0.0)


def _nucleus_edge(found: Tensor, ordered: Tensor | None, top_p: float) -> Tensor:
    """The smallest weight [B, 1] in the shortest head that holds `top_p` of all weight.

    `ordered` holds the weights that top-k kept, in falling order; None if it kept all.
    """
    wide = torch.float32 if found.device.type == "mps" else torch.float64
    needed = found.sum(-1, keepdim=True, dtype=wide) * top_p
    if ordered is None:
        ordered = _head(found, needed)
    short = (ordered.cumsum(-1, dtype=wide) < needed).sum(-1, keepdim=True)
    # Equals of the last one that top-k kept may still be missing from the list.
    return ordered.gather(-1, short.clamp_(max=ordered.shape[-1] - 1))


def _head(found: Tensor, needed: Tensor) -> Tensor:
    """The largest weights in falling order, as many as reach `needed` and perhaps all."""
    if found.device.type == "cpu":  # looking at a value costs nothing here, and sorting a lot
        size = _HEAD
        while size < found.shape[-1] // 4:
            head = found.topk(size).values
            if bool((head.cumsum(-1, dtype=needed.dtype)[:, -1:] >= needed).all()):
                return head
            size *= 8
    return found.sort(descending=True).values
