"""Which neurons of a model's FFs stay, once something has been summed up about them."""

from dataclasses import replace

from torch import Tensor, nn

from skimp import kernels
from skimp.methods.experts.modules import NeuronsIn, NeuronsOut
from skimp.methods.experts.select import Chosen, choose, left_out, magnitudes


class Chooser:
    """Chooses experts for the FFs of `model` that its plan left to the prompt, by layer.

    It reads the rule and the prior off the modules that the plan put there, and of weights it keeps
    the magnitudes only.

    Attributes:
        widths: the number of neurons F of every such layer; empty if there is none.
        inputs, outputs: the maps into its neurons and out of them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.widths: dict[int, int] = {}
        self.outputs: dict[int, NeuronsOut] = {}
        self.inputs: dict[int, list[NeuronsIn]] = {}
        for module in model.modules():
            if isinstance(module, NeuronsOut):
                self.widths[module.layer] = module.width
                self.outputs[module.layer] = module
            elif isinstance(module, NeuronsIn):
                self.inputs.setdefault(module.layer, []).append(module)
        for maps in self.inputs.values():
            maps.sort(key=lambda module: module.place)
        self._magnitudes: dict[int, Tensor] = {}

    def count(self, layer: int) -> int:
        """The neurons that an answer keeps of a layer."""
        module = self.outputs[layer]
        return module.section.count(layer, module.width)

    def fills(self, layer: int) -> bool:
        """Whether left-out neurons count as their mean, so that `choose` wants the totals."""
        return self.outputs[layer].section.fill == "mean"

    def choose(
        self,
        layer: int,
        sums: Tensor,
        counts: Tensor,
        totals: Tensor | None = None,
        *,
        apart: bool = False,
        keep: float | None = None,
    ) -> Chosen:
        """The experts of one layer.

        Args:
            sums: of `statistic.squares` [B, F], taken over `counts` [B] tokens.
            totals: of `statistic.totals` [B, F]; with them the choice says what stands in for the
                neurons left out.
            apart: each sequence has its own, even where the section asks for a shared set.
            keep: a share to keep in place of the section's.
        """
        module = self.outputs[layer]
        section = module.section.apart() if apart else module.section
        section = section if keep is None else replace(section, keep=keep)
        chosen = choose(
            sums,
            counts,
            section.count(layer, module.width),
            section,
            layer,
            magnitude=self._magnitude(layer) if section.select == "magnitude" else None,
            prior=module.prior,
        )
        if totals is None or (len(chosen.rows) == module.width and chosen.mask is None):
            return chosen
        means = left_out(chosen, totals / counts.clamp(min=1).unsqueeze(-1))
        return replace(chosen, fill=kernels.neurons(means.to(module.weight.dtype), module.weight))

    def _magnitude(self, layer: int) -> Tensor:
        if layer not in self._magnitudes:
            inputs, width = self.inputs[layer], self.widths[layer]
            weights = [part for module in inputs for part in module.weight.detach().split(width)]
            self._magnitudes[layer] = magnitudes(weights)
        return self._magnitudes[layer]
