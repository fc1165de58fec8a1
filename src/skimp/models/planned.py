"""Build the model of a folder that skimp wrote, without running the code inside it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skimp.errors import LoadError
from skimp.models.carve import planned_class
from skimp.models.folder import refuse_misfits


def load_planned(folder: Path, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The planned model in `folder`, in eval mode.

    Raises:
        LoadError: the folder's config or weights are damaged, or not what skimp writes.
    """
    import transformers

    data = _read_config(folder)
    block = data["skimp"]
    try:
        config_base = getattr(transformers, block["config_class"])
        model_base = getattr(transformers, block["model_class"])
        if not issubclass(model_base, transformers.PreTrainedModel):
            raise TypeError("skimp.model_class is no transformers model")
        config_class = type("PlannedConfig", (config_base,), {"model_type": data["model_type"]})
        model_class: Any = planned_class(model_base)
        model_class.config_class = config_class
        model, report = model_class.from_pretrained(
            folder,
            config=config_class.from_dict(data),
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused, by name
            output_loading_info=True,
            local_files_only=True,
        )
    except OSError as error:
        raise LoadError(f"{folder}: its weights cannot be read ({error}).") from None
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise LoadError(
            f"{folder}/config.json: skimp: the layout is damaged ({error}); write the folder anew "
            "with `skimp apply`."
        ) from None
    refuse_misfits(str(folder), report)
    return model.to(device).eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: cannot be read ({error}).") from None
    block = data.get("skimp")
    if not isinstance(block, dict) or not isinstance(block.get("layout"), dict):
        raise LoadError(f"{path}: skimp: is not what `skimp apply` writes.")
    return data
