"""The dense model that a planned one was carved from: its class, config and anatomy."""

from dataclasses import replace
from typing import Any

import torch

from skimp.models.anatomy import Anatomy


def dense_class(model: Any) -> tuple[Any, Any]:
    """transformers' model class of the dense model, and a config of it, both without the plan."""
    import transformers

    block = getattr(model.config, "skimp", None)
    if block is None:
        return type(model), type(model.config).from_dict(model.config.to_dict())
    model_class, config_class = type(model), type(model.config)
    if "model_class" in block:  # it was loaded from a folder that skimp wrote
        model_class = getattr(transformers, block["model_class"])
        config_class = getattr(transformers, block["config_class"])
    data = {**model.config.to_dict(), **block["layout"]["dense"]}
    for name in ("skimp", "model_type", "auto_map", "architectures"):
        data.pop(name, None)
    return model_class, config_class.from_dict(data)


def dense_anatomy(model: Any) -> Anatomy:
    """The anatomy of the dense model, whose weights are not needed."""
    model_class, config = dense_class(model)
    here = Anatomy.of(model)
    with torch.device("meta"):
        dense = model_class(config).to(next(model.parameters()).dtype)
    return replace(Anatomy.of(dense), fingerprint=here.fingerprint)
