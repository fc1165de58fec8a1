"""Which neurons of a model's FFs stay, once something has been summed up about them."""

from torch import Tensor, nn

from skimp.methods.experts.modules import NeuronsIn, NeuronsOut
from skimp.methods.experts.select import Chosen, choose, magnitudes


class Chooser:
    """Chooses experts for the FFs of `model` that its plan left to the prompt, by layer.

    It reads the rule and the prior off the modules that the plan put there, and of weights it keeps
    the magnitudes only.

    Attributes:
        widths: the number of neurons F of every such layer; empty if there is none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.widths: dict[int, int] = {}
        self._outputs: dict[int, NeuronsOut] = {}
        self._inputs: dict[int, list[NeuronsIn]] = {}
        for module in model.modules():
            if isinstance(module, NeuronsOut):
                self.widths[module.layer] = module.width
                self._outputs[module.layer] = module
            elif isinstance(module, NeuronsIn):
                self._inputs.setdefault(module.layer, []).append(module)
        self._magnitudes: dict[int, Tensor] = {}

    def choose(self, layer: int, sums: Tensor, counts: Tensor, *, apart: bool = False) -> Chosen:
        """The experts of one layer.

        Args:
            sums: of `statistic.squares` [B, F], taken over `counts` [B] tokens.
            apart: each sequence has its own, even where the section asks for a shared set.
        """
        module = self._outputs[layer]
        section = module.section.apart() if apart else module.section
        return choose(
            sums,
            counts,
            section.count(layer, module.width),
            section,
            layer,
            magnitude=self._magnitude(layer) if section.select == "magnitude" else None,
            prior=module.prior,
        )

    def _magnitude(self, layer: int) -> Tensor:
        if layer not in self._magnitudes:
            inputs, width = self._inputs[layer], self.widths[layer]
            weights = [part for module in inputs for part in module.weight.detach().split(width)]
            self._magnitudes[layer] = magnitudes(weights)
        return self._magnitudes[layer]
