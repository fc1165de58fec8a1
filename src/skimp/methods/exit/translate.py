"""What brings a state after some layer closer to the final one, in closed form.

As the tuned lens (Belrose et al., 2023), but fitted by ridge regression from final-normalised to
final-normalised states instead of by gradient steps.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from skimp import kernels
from skimp.methods.drop.closed_form import reduced_rank_ridge, ridge_regression
from skimp.methods.exit.section import Translator
from skimp.methods.exit.values import translator_name
from skimp.methods.moments import Moments

RIDGE = 1e-2  # share of the mean variance of what enters (docs/log.md)


class Affine:
    """z -> weight z + bias, or up (down z) + bias, in the model's dtype."""

    def __init__(self, weights: tuple[Tensor, ...], bias: Tensor) -> None:
        self.weights, self.bias = weights, bias

    @classmethod
    def of(cls, layer: int, values: Mapping[str, Tensor], like: Tensor) -> "Affine | None":
        """A layer's translator among a plan's values, or None."""
        bias = values.get(translator_name(layer, "bias"))
        if bias is None:
            return None
        whole = values.get(translator_name(layer, "weight"))
        names = ("weight",) if whole is not None else ("down", "up")
        weights = tuple(values[translator_name(layer, name)].to(like) for name in names)
        return cls(weights, bias.to(like))

    def __call__(self, z: Tensor) -> Tensor:
        """States [..., d] to states [..., d]."""
        for weight in self.weights[:-1]:
            z = kernels.linear(z, weight)
        return kernels.linear(z, self.weights[-1], self.bias)


def solve(moments: Moments, translator: Translator, layer: int) -> dict[str, Tensor]:
    """The fitted tensors of one layer's translator under their names, float32; none if plain.

    `moments`: x are final-normalised states after the layer, y after the last one.
    """
    if translator == "plain":
        return {}
    mean_x = torch.as_tensor(moments.x / moments.count)
    mean_y = torch.as_tensor(moments.y / moments.count)
    cxx = moments.xx / moments.count - mean_x.outer(mean_x)
    cxy = moments.xy / moments.count - mean_x.outer(mean_y)
    if translator == "full":
        weight = ridge_regression(cxx, cxy, RIDGE)
        parts = {"weight": weight}
    else:
        down, up = reduced_rank_ridge(cxx, cxy, RIDGE, translator)
        weight = up @ down
        parts = {"down": down, "up": up}
    parts["bias"] = mean_y - weight @ mean_x
    return {translator_name(layer, name): part.float() for name, part in parts.items()}
