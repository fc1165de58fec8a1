"""The target `transformers-plain`: the dense family's own class, what was left out being zeros.

It loads wherever the family does, without remote code, and says what the planned model says. It
saves nothing: the zeros are stored, read and multiplied like any weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skimp.export.dense import dense_class
from skimp.export.forms import DTYPES, PLAIN
from skimp.export.target import Obstacle, Product
from skimp.export.transformers import CHECK
from skimp.models.anatomy import KINDS, Kind
from skimp.models.carve import KEEP, Constant, neuron_axis

# Config switches that give a family's maps biases, by the kind of sublayer.
_SWITCHES: Mapping[Kind, str] = {"attention": "attention_bias", "ffn": "mlp_bias"}
_REMEDY = "use `fill: zero`, or export `--to transformers`"
_ZERO = {"drop": {"fill": "zero", "repair": "none"}}


class Plain:
    """The planned model with its zeros written out."""

    name = "transformers-plain"
    engines = ("transformers", "anything that loads the dense family")
    holds = "dropped sublayers without fill, or with means where there are biases; narrower FFs"
    lacks = "linear fills; it saves neither memory nor time, since its zeros are computed with"
    formats = PLAIN
    check = CHECK

    def obstacles(self, product: Product, form: str) -> list[Obstacle]:
        """Fills that the dense family's class has no place for."""
        del form
        kinds = {entry[kind].partition(":")[0] for entry in _kept(product) for kind in KINDS}
        if "linear" in kinds:
            reason = "a linear map stands where the dense family's class has a whole sublayer"
            return [Obstacle("drop.fill", reason, _REMEDY, _ZERO)]
        names = _meta(product)[1].state_dict().keys()
        lost = [path for path in _biases(product) if path not in names]
        if lost:
            reason = f"a mean needs the bias {lost[0]}, which a {product.dense.model_type} has not"
            return [Obstacle("drop.fill", reason, _REMEDY, _ZERO)]
        return []

    def write(self, product: Product, form: str, folder: Path) -> Path:
        """Write a folder of the dense family."""
        config, dense = _meta(product)
        weights = dense_weights(product, dense)
        dtype = DTYPES[form]
        dense.load_state_dict({key: each.to(dtype) for key, each in weights.items()}, assign=True)
        dense.tie_weights()
        config.dtype = dtype
        dense.generation_config = product.model.generation_config
        dense.save_pretrained(folder)
        if product.tokenizer is not None:
            product.tokenizer.save_pretrained(folder)
        return folder

    def loading(self, product: Product, form: str) -> str:
        """How to load it."""
        del form
        return f"""\
It is a {product.dense.model_type} model like any other and needs no remote code, in any engine that
knows the family:
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("MODEL", dtype="auto")
```
**It saves nothing.** What was left out is stored as zeros and computed with, so this folder is for
judging quality where nothing else loads.
"""


TARGET = Plain()


def dense_weights(product: Product, dense: Any) -> dict[str, Tensor]:
    """The dense model's weights by name: those of the planned model, and zeros for the rest.

    A branch whose weights are all zeros, its own norms' among them, adds nothing, whatever it is.
    """
    planned = product.model.state_dict()
    sources = [layer.source for layer in product.anatomy.layers]
    position = {source: index for index, source in enumerate(sources)}
    prefix = f"{product.dense.family.layers}."
    constants = _constants(product)
    narrow = _narrow(product)
    found = {}
    for name, like in dense.state_dict().items():
        there = name
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            there = f"{prefix}{position.get(int(index), 'gone')}.{rest}"
        zeros = torch.zeros(like.shape, dtype=next(iter(planned.values())).dtype)
        if name in constants:
            found[name] = constants[name]
        elif there not in planned:
            found[name] = zeros
        elif there in narrow:
            found[name] = _padded(planned[there], zeros, *narrow[there])
        else:
            found[name] = planned[there]
    return found


def _kept(product: Product) -> list[dict[str, Any]]:
    block = getattr(product.config, "skimp", None)
    return [] if block is None else block["layout"]["kept"]


def _meta(product: Product) -> tuple[Any, Any]:
    """The dense model without storage, with switches on for the biases that are needed."""
    model_class, config = dense_class(product.model)
    for kind, switch in _SWITCHES.items():
        outputs = _outputs(product, kind)
        wanted = any(path.endswith(outputs) for path in _biases(product)) if outputs else False
        if wanted and hasattr(config, switch):
            setattr(config, switch, True)
    with torch.device("meta"):
        return config, model_class(config)


def _outputs(product: Product, kind: Kind) -> tuple[str, ...]:
    family = product.dense.family
    branch = family.attention if kind == "attention" else family.ffn
    return tuple(f"{path}.bias" for path in branch.output)


def _biases(product: Product) -> list[str]:
    """Biases, named as in the dense model, that means are in or must go to."""
    prefix = f"{product.dense.family.layers}."
    block = getattr(product.config, "skimp", None)
    found = list(_constants(product))
    for path in block["layout"]["biases"] if block else ():
        index, _, rest = path.removeprefix(prefix).partition(".")
        found.append(f"{prefix}{_kept(product)[int(index)]['source']}.{rest}.bias")
    return found


def _constants(product: Product) -> dict[str, Tensor]:
    """Constants in dropped branches' places by the bias that can hold them."""
    family = product.dense.family
    found = {}
    for entry, layer in zip(_kept(product), _blocks(product), strict=False):
        for kind in KINDS:
            branch = family.attention if kind == "attention" else family.ffn
            if entry[kind] == KEEP:
                continue
            fill = layer.get_submodule(branch.modules[-1])
            if isinstance(fill, Constant):
                # Behind a norm, or without a plain output map, there is no bias that would do.
                path = branch.output[0] if branch.output and not branch.after else "output"
                found[f"{family.layers}.{entry['source']}.{path}.bias"] = fill.value.detach()
    return found


def _blocks(product: Product) -> list[Any]:
    return list(product.model.get_submodule(product.dense.family.layers))


def _narrow(product: Product) -> dict[str, tuple[int, int]]:
    """Weights of narrower FFs: the axis that neurons lie along, and how many maps are in one."""
    found = {}
    for position, entry in enumerate(_kept(product)):
        if "neurons" not in entry:
            continue
        neurons, layer = entry["neurons"], _blocks(product)[position]
        path = f"{product.dense.family.layers}.{position}"
        for name in (*neurons["inputs"], neurons["output"]):
            last = name == neurons["output"]
            axis = neuron_axis(layer.get_submodule(name), inputs=last)
            parts = 2 if neurons["fused"] and not last else 1
            found[f"{path}.{name}.weight"] = (axis, parts)
            if not last:
                found[f"{path}.{name}.bias"] = (0, parts)
    return found


def _padded(weight: Tensor, zeros: Tensor, axis: int, parts: int) -> Tensor:
    """`weight` with zeros behind each of its `parts` along `axis`, as large as `zeros`."""
    for part, room in zip(weight.chunk(parts, axis), zeros.chunk(parts, axis), strict=True):
        room.narrow(axis, 0, part.shape[axis]).copy_(part)
    return zeros
