"""Training the rules on what probes saw: scikit-learn for the SVM, L-BFGS for the CRF."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from skimp.errors import SkimpError
from skimp.methods.exit.section import Exit
from skimp.methods.exit.values import rule_name

_PENALTY = 1e-3  # of the CRF's squared weights, on standardised features
_STEPS = 60


def train(section: Exit, seen: Sequence[Tensor], right: Sequence[Tensor]) -> dict[str, Tensor]:
    """The rule's fitted tensors under their names; none for the bare threshold.

    Args:
        seen: features [n, F] of every probe, the same tokens in each.
        right: bool [n] for every probe: its likeliest token was the full model's.

    Raises:
        SkimpError: scikit-learn is not installed.
    """
    if section.rule == "threshold":
        return {}
    scales = [_scale(each) for each in seen]
    flat = [(each - mean) / spread for each, (mean, spread) in zip(seen, scales, strict=True)]
    if section.rule == "svm":
        found = [_linear(x, y) for x, y in zip(flat, right, strict=True)]
        steps: list[Tensor] = []
    else:
        found, steps = _chain(flat, right)
    values = {}
    for number, layer in enumerate(section.probe):
        (weight, bias), (mean, spread) = found[number], scales[number]
        weight = weight / spread
        values[rule_name(layer, "weight")] = weight.float()
        values[rule_name(layer, "bias")] = (bias - weight @ mean).reshape(1).float()
        if steps and number:
            values[rule_name(layer, "transition")] = steps[number].float()
    return values


def _scale(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread [F]; what never changes is left as it is, and gets no weight."""
    seen = seen.double()
    spread = seen.std(0, correction=0)
    return seen.mean(0), torch.where(spread > 1e-6, spread, 1e6)


def _linear(seen: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """A linear SVM, then the stretch that makes its values log-odds (Platt, 1999)."""
    made = learner()
    svm = made.LinearSVC(dual=False, max_iter=5000)
    platt = made.LogisticRegression(C=1e3, max_iter=1000)
    x, y = seen.numpy(), right.numpy()
    if y.all() or not y.any():  # nothing to tell apart: only how often that was so
        share = (right.sum() + 0.5) / (len(right) + 1)
        return torch.zeros(seen.shape[1], dtype=torch.float64), share.double().logit()
    svm.fit(x, y)
    values = svm.decision_function(x)
    platt.fit(values[:, None], y)
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    weight = torch.from_numpy(svm.coef_[0]) * slope
    return weight, torch.tensor(float(svm.intercept_[0]) * slope + shift, dtype=torch.float64)


def learner() -> Any:
    """scikit-learn's linear models; SkimpError where they are not installed."""
    try:
        from sklearn import linear_model, svm
    except ImportError:
        raise SkimpError(
            "exit: fitting needs scikit-learn; install it with `pip install 'skimp[exit]'`."
        ) from None
    return SimpleNamespace(
        LinearSVC=svm.LinearSVC, LogisticRegression=linear_model.LogisticRegression
    )


def _chain(
    seen: Sequence[Tensor], right: Sequence[Tensor]
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """A linear-chain CRF of greatest likelihood: emissions, and transitions (none into probe 0)."""
    count, width = len(seen), seen[0].shape[1]
    x = torch.stack([each.double() for each in seen])
    y = torch.stack([each.long() for each in right])
    weights = torch.zeros(count, width + 1, dtype=torch.float64, requires_grad=True)
    steps = torch.zeros(count, 2, 2, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights, steps], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        emitted = (x * weights[:, None, :-1]).sum(-1) + weights[:, None, -1]
        energy = (emitted * y).sum(0)
        alpha = torch.stack([torch.zeros_like(emitted[0]), emitted[0]], -1)
        for index in range(1, count):
            energy = energy + steps[index][y[index - 1], y[index]]
            alpha = torch.logsumexp(alpha[:, :, None] + steps[index], 1)
            alpha = torch.stack([alpha[:, 0], alpha[:, 1] + emitted[index]], -1)
        fit = (torch.logsumexp(alpha, -1) - energy).mean()
        return fit + _PENALTY * (weights[:, :-1].square().sum() + steps.square().sum())

    def closure() -> Tensor:
        search.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        search.step(closure)
    made = weights.detach()
    return [(each[:-1], each[-1]) for each in made], list(steps.detach())
