"""What transformers loses of a GGUF file, put back from the file's own metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from skimp.errors import LoadError
from skimp.models.gguf_header import Header, floats
from skimp.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

FREQUENCIES = "rope_freqs.weight"
"""The tensor in which llama.cpp keeps Llama 3's rotary scaling: one divisor a frequency."""

# Values of tokenizer.ggml.pre (llama.cpp's names) for which every digit is a token of its own, and
# those for which GPT-2's splitting, transformers' fallback, is right.
_DIGIT_BY_DIGIT = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
_AS_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"})


def repair_tokenizer(
    tokenizer: PreTrainedTokenizerBase, header: Header, progress: Progress
) -> None:
    """Make a converted tokenizer agree with the metadata, in place.

    Sets the special tokens, the chat template, the context length, and how text is split into words
    before byte pairs are merged. Notes on `progress` where the splitting is not known.
    """
    metadata = header.metadata
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for role, name in names.items():
        number = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if number is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(number))
    if "tokenizer.chat_template" in metadata:
        tokenizer.chat_template = metadata["tokenizer.chat_template"]
    if context := header.of_architecture("context_length"):
        tokenizer.model_max_length = context
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        _repair_splitting(tokenizer, metadata.get("tokenizer.ggml.pre", "unnamed"), progress)


def _repair_splitting(tokenizer: Any, splitting: str, progress: Progress) -> None:
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if splitting in _DIGIT_BY_DIGIT:
        # Without it the spaces before a number are divided differently: "a  1" would be
        # a, space, space, 1 instead of a, two spaces, 1.
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif splitting not in _AS_GPT2 and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        progress.note(
            f"The tokenizer splits text in a way that is not known here ({splitting}); some tokens "
            "may differ from the original's."
        )


def repair_config(config: PreTrainedConfig, header: Header, path: Path) -> None:
    """Make a converted config agree with the metadata, in place.

    Sets every end-of-text token and Llama 3's rotary scaling, and writes the norm epsilon as the
    short decimal it was before the file rounded it to float32.

    Raises:
        LoadError: the file scales rotary frequencies in a way that is not Llama 3's.
    """
    keys = ("eos_token_id", "eot_token_id")  # end of text, end of turn
    found = (header.metadata.get(f"tokenizer.ggml.{key}") for key in keys)
    ends = list(dict.fromkeys(number for number in found if number is not None))
    if ends:
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
    epsilon = getattr(config, "rms_norm_eps", None)
    if isinstance(epsilon, float):
        config.rms_norm_eps = float(f"{epsilon:.7g}")
    for tensor in header.tensors:
        if tensor.name == FREQUENCIES:
            _restore_scaling(config, torch.tensor(floats(path, header, tensor)), path)


def _restore_scaling(config: Any, divisors: torch.Tensor, path: Path) -> None:
    """Find the Llama 3 scaling that gives these divisors (fp32, head_dim/2 of them)."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": round(float(divisors.max()), 3),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = 2 * len(divisors)
    plain = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if scaled.shape != divisors.shape or not torch.allclose(
        scaled.double() * divisors, plain, rtol=1e-4, atol=0
    ):
        raise LoadError(
            f"{path} scales its rotary frequencies in a way that is not Llama 3's; load the "
            "model's safetensors folder instead."
        )
