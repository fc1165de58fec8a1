"""A model from a local folder of safetensors, with nothing missing and nothing left over."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from skimp.errors import LoadError
from skimp.models import checks
from skimp.models.placement import require_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMALLER = "free some memory, or load it in a smaller dtype such as bf16"
"""What to do about a model that does not fit in memory."""


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    name: str | None = None,
) -> PreTrainedModel:
    """Return the causal language model in `folder`, whose config.json was checked.

    Args:
        folder: with config.json and safetensors weights.
        dtype: of the loaded weights, whatever the file has.
        device: where they go.
        trust_remote_code: run Python code from the folder; never the default.
        name: what messages call the model; the folder's path by default.

    Raises:
        LoadError: anything that makes the model unloadable or not the one the weights are of.
    """
    where = name or str(folder)
    config = read_config(folder, where, trust_remote_code)
    checks.check_decoder(config, where)
    require_memory(where, checks.count_weights(folder) * dtype.itemsize, device, SMALLER)
    model, found = _from_pretrained(folder, where, config, dtype, device, trust_remote_code)
    refuse_misfits(where, found)
    return model.to(device)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `folder`.

    Raises:
        LoadError: its files cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise LoadError(
            f"the tokenizer in {folder} cannot be read ({reason(error)}); copy the model's "
            "tokenizer files there again."
        ) from error
    return tokenizer


def reason(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop, cut to 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".:")[:200]


def read_config(folder: Path, where: str, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the folder's config; LoadError, calling the model `where`, if it is refused."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise LoadError(
            f"{where} has a {checks.CONFIG} that transformers refuses ({reason(error)})."
        ) from error


def _from_pretrained(
    folder: Path,
    where: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool,
) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM
    from transformers.utils import is_accelerate_available

    # With accelerate, weights go straight to the GPU and never fill the host's memory.
    straight = device.type != "cpu" and is_accelerate_available()
    load: Any = AutoModelForCausalLM.from_pretrained  # its stub knows no loading info
    try:
        return load(
            folder,
            config=config,
            dtype=dtype,
            device_map={"": device} if straight else None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused, by name
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise LoadError(
            f"{where} does not fit in the memory of {device}; use another device."
        ) from None
    except Exception as error:
        raise LoadError(f"{where} cannot be loaded ({reason(error)}).") from error


def refuse_misfits(where: str, found: dict[str, Any]) -> None:
    """Refuse weights that are not exactly those of the model that config.json describes.

    transformers fills missing weights with random ones and drops unexpected ones, with a warning.

    Args:
        where: what messages call the model.
        found: transformers' `output_loading_info`.

    Raises:
        LoadError: a weight is missing, of another shape, or not part of the model.
    """
    if found["missing_keys"]:
        raise LoadError(
            f"{where} lacks {_some(found['missing_keys'])}, which its config calls for."
        )
    if found["mismatched_keys"]:
        name, stored, wanted = sorted(found["mismatched_keys"])[0]
        raise LoadError(
            f"{where} holds {name} with shape {list(stored)} but its config calls for "
            f"{list(wanted)}."
        )
    if found["unexpected_keys"]:
        raise LoadError(
            f"{where} holds {_some(found['unexpected_keys'])}, which its config has no place for."
        )
    if found.get("error_msgs"):
        raise LoadError(f"{where} cannot be loaded ({found['error_msgs'][0]}).")


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"the weight {first}" + (f" and {len(others)} others" if others else "")
