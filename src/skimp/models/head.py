"""The end of a model: its output embedding and what its family does to logits afterwards."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skimp import kernels
from skimp.errors import PlanError
from skimp.models.reading import family_of

_TRIED = 3  # made-up states that the head is tried on


@dataclass(frozen=True)
class Head:
    """From final-normalised states to logits: `weight` [V, d], `bias` [V] or none.

    Logits are multiplied by `scale`, then capped at `softcap` (0: not at all).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    @classmethod
    def of(cls, model: nn.Module) -> "Head":
        """The head of a model, tried against the model's own code.

        Raises:
            PlanError: the family does more between its final norm and its logits.
        """
        head = cls.read(model)
        _try(model, head)
        return head

    @classmethod
    def read(cls, model: nn.Module) -> "Head":
        """The head of a model that was tried before, as a plan with exits does when applied."""
        root: Any = model
        module, config = root.get_output_embeddings(), root.config
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        bias = getattr(module, "bias", None)
        weight = module.weight.detach()
        return cls(weight, None if bias is None else bias.detach(), scale, softcap)

    def logits(self, z: Tensor) -> Tensor:
        """Logits [..., V] of final-normalised states `z` [..., d]."""
        return self._finish(kernels.linear(z, self.weight, self.bias))

    def rows(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits [B, K] of some tokens of states `z` [B, d]: `ids` int32 [K], or [B, K]."""
        if ids.dim() == 1:
            return self._finish(kernels.linear(z, self.weight, self.bias, ids))
        if len(ids) == 1:
            return self._finish(kernels.linear(z, self.weight, self.bias, ids[0]))
        found = torch.bmm(self.weight[ids], z.unsqueeze(-1)).squeeze(-1)
        return self._finish(found if self.bias is None else found + self.bias[ids])

    def _finish(self, logits: Tensor) -> Tensor:
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last layer and the head.

    Raises:
        PlanError: the family has none.
    """
    path = family_of(model).final_norm
    try:
        norm: Any = model.get_submodule(path)
    except AttributeError:
        norm = None
    if norm is None:
        raise _unfit(model, "has no final norm")
    return norm


@torch.no_grad()
def _try(model: nn.Module, head: Head) -> None:
    """Made-up states in place of what the last layer gives must come out as `head` says."""
    norm = final_norm(model)
    if head.weight.device.type == "meta":
        return
    random = torch.Generator().manual_seed(0)
    made = torch.randn(1, _TRIED, head.weight.shape[1], generator=random).to(head.weight)
    sizes: list[int] = []

    def replace(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sizes.append(args[0].shape[-1])
        return (made[..., : args[0].shape[-1]], *args[1:])

    handle = norm.register_forward_pre_hook(replace)
    try:
        ids = torch.zeros(1, _TRIED, dtype=torch.long, device=head.weight.device)
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        handle.remove()
    if sizes != [head.weight.shape[1]]:
        raise _unfit(model, "changes the width of states behind its final norm")
    ours = head.logits(norm(made)[0]).float()
    slack = 8 * torch.finfo(head.weight.dtype).eps * float(logits.abs().max())
    if ours.shape != logits.shape or not torch.allclose(ours, logits, rtol=0, atol=slack):
        raise _unfit(model, "does more than multiply and cap between its final norm and its logits")


def _unfit(model: Any, reason: str) -> PlanError:
    return PlanError(
        f"exit: a {model.config.model_type} model {reason}, so no layer of it can be probed; leave "
        "`exit` out of the plan."
    )
