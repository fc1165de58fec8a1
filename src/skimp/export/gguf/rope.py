"""Rotary positions: what llama.cpp is told of them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PLAIN = ("default", "linear", "llama3", "yarn")
"""Kinds of frequencies that llama.cpp computes as transformers does."""


def unknown(config: Any) -> str | None:
    """What of the model's rotary positions llama.cpp cannot be told, or None."""
    rope = parameters(config)
    kind = rope.get("rope_type", "default")
    if kind not in PLAIN:
        return f"rotary frequencies of the kind {kind}"
    share = rope.get("partial_rotary_factor") or 1.0
    if share != 1:
        return f"positions that turn only {share:.0%} of each head"
    if kind == "yarn":
        return _unusual_yarn(config, rope)
    return None


def parameters(config: Any) -> Mapping[str, Any]:
    """What the config says of rotary positions."""
    return getattr(config, "rope_parameters", None) or {}


def divisors(config: Any) -> Tensor | None:
    """Llama 3's scaling: what each frequency is divided by [head width / 2], float32; else None."""
    rope = parameters(config)
    if rope.get("rope_type") != "llama3":
        return None
    scaled, _ = _frequencies("llama3", config)
    size = 2 * len(scaled)
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    return (plain / scaled.double()).float()


def describe(writer: Any, config: Any) -> None:
    """Write the keys; the model's rotary positions must not be `unknown`."""
    import gguf

    rope = parameters(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def _unusual_yarn(config: Any, rope: Mapping[str, Any]) -> str | None:
    """llama.cpp's YaRN has the paper's constants; other ones cannot be told to all releases."""
    fast, slow = rope.get("beta_fast") or 32, rope.get("beta_slow") or 1
    if (fast, slow) != (32, 1):
        return f"YaRN with beta_fast {fast} and beta_slow {slow}"
    if not rope.get("truncate", True):
        return "YaRN without truncation"
    if not rope.get("factor"):
        return "YaRN without a factor"
    _, attention = _frequencies("yarn", config)
    usual = 0.1 * math.log(rope["factor"]) + 1 if rope["factor"] > 1 else 1.0
    if not math.isclose(attention, usual, rel_tol=1e-6):
        return f"YaRN with an attention factor of {attention:g}"
    return None


def _frequencies(kind: str, config: Any) -> tuple[Tensor, float]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
