"""Number formats of plain weights, by the names that targets give them."""

import copy
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
PLAIN = tuple(DTYPES)


def cast(model: Any, form: str) -> Any:
    """The model in a format: itself where it is in it already, else a copy."""
    dtype = DTYPES[form]
    if all(weight.dtype == dtype for weight in model.parameters()):
        return model
    made = copy.deepcopy(model).to(dtype)
    made.config.dtype = dtype
    return made
