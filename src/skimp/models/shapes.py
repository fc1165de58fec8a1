"""Named true shapes of published models, to be filled with random weights.

Time and memory depend on a model's shape alone, so speed can be measured on real shapes without
any download. Figures come from the `config.json` that each publisher ships beside the weights; the
source line of each row names the repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skimp.errors import LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


@dataclass(frozen=True)
class Shape:
    """One published shape: a transformers config class and what differs from its defaults."""

    config: str
    parameters: int
    """Parameters of the published model, tied weights counted once."""
    settings: Mapping[str, Any]


SHAPES: Mapping[str, Shape] = {
    # meta-llama/Llama-2-7b-hf
    "llama-2-7b": Shape(
        "LlamaConfig",
        6_738_415_616,
        dict(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=32000,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(10000.0),
        ),
    ),
    # meta-llama/Llama-2-13b-hf
    "llama-2-13b": Shape(
        "LlamaConfig",
        13_015_864_320,
        dict(
            hidden_size=5120,
            intermediate_size=13824,
            num_hidden_layers=40,
            num_attention_heads=40,
            num_key_value_heads=40,
            vocab_size=32000,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(10000.0),
        ),
    ),
    # TinyLlama/TinyLlama-1.1B-Chat-v1.0
    "llama-1.1b": Shape(
        "LlamaConfig",
        1_100_048_384,
        dict(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            vocab_size=32000,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(10000.0),
        ),
    ),
    # meta-llama/Llama-3.1-8B
    "llama-3.1-8b": Shape(
        "LlamaConfig",
        8_030_261_248,
        dict(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_parameters=_LLAMA3_ROPE | {"factor": 8.0},
        ),
    ),
    # meta-llama/Llama-3.2-1B
    "llama-3.2-1b": Shape(
        "LlamaConfig",
        1_235_814_400,
        dict(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            vocab_size=128256,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_parameters=_LLAMA3_ROPE | {"factor": 32.0},
            tie_word_embeddings=True,
        ),
    ),
    # mistralai/Mistral-7B-v0.1
    "mistral-7b": Shape(
        "MistralConfig",
        7_241_732_096,
        dict(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=32000,
            max_position_embeddings=32768,
            sliding_window=4096,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(10000.0),
        ),
    ),
    # Qwen/Qwen3-8B
    "qwen3-8b": Shape(
        "Qwen3Config",
        8_190_735_360,
        dict(
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151936,
            max_position_embeddings=40960,
            rms_norm_eps=1e-6,
            rope_parameters=_rope(1000000.0),
        ),
    ),
    # google/gemma-2-2b
    "gemma-2-2b": Shape(
        "Gemma2Config",
        2_614_341_888,
        dict(
            hidden_size=2304,
            intermediate_size=9216,
            num_hidden_layers=26,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            vocab_size=256000,
            max_position_embeddings=8192,
            sliding_window=4096,
            query_pre_attn_scalar=256,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            rms_norm_eps=1e-6,
            rope_parameters=_rope(10000.0),
            tie_word_embeddings=True,
        ),
    ),
    # facebook/opt-1.3b
    "opt-1.3b": Shape(
        "OPTConfig",
        1_315_758_080,
        dict(
            hidden_size=2048,
            ffn_dim=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            vocab_size=50272,
            word_embed_proj_dim=2048,
            max_position_embeddings=2048,
            do_layer_norm_before=True,
            activation_function="relu",
        ),
    ),
    # HuggingFaceTB/SmolLM2-135M
    "smollm2-135m": Shape(
        "LlamaConfig",
        134_515_008,
        dict(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(100000.0),
            tie_word_embeddings=True,
        ),
    ),
    # HuggingFaceTB/SmolLM2-360M
    "smollm2-360m": Shape(
        "LlamaConfig",
        361_821_120,
        dict(
            hidden_size=960,
            intermediate_size=2560,
            num_hidden_layers=32,
            num_attention_heads=15,
            num_key_value_heads=5,
            vocab_size=49152,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(100000.0),
            tie_word_embeddings=True,
        ),
    ),
    # HuggingFaceTB/SmolLM2-1.7B
    "smollm2-1.7b": Shape(
        "LlamaConfig",
        1_711_376_384,
        dict(
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=24,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=49152,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_parameters=_rope(130000.0),
            tie_word_embeddings=True,
        ),
    ),
}


@dataclass(frozen=True)
class RandomSource:
    """A parsed ``random:SHAPE[,layers=N][,seed=S]``."""

    shape: str
    layers: int
    """Layers to build, at most those of the published model."""
    seed: int


def parse(source: str, *, seed: int = 0) -> RandomSource:
    """Read ``random:SHAPE[,layers=N][,seed=S]``; `seed` holds where the source names none.

    Raises:
        LoadError: unknown shape (the message lists the known ones), unknown or malformed setting.
    """
    name, *settings = source.removeprefix("random:").split(",")
    if name not in SHAPES:
        raise LoadError(f"shape {name!r} in {source!r} is unknown; known are {', '.join(SHAPES)}.")
    full = SHAPES[name].settings["num_hidden_layers"]
    values = {"layers": full, "seed": seed}
    given: set[str] = set()
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in given:
            raise LoadError(f"{key} is given twice in {source!r}; leave one out.")
        given.add(key)
        if key not in values or not value.isdecimal():
            raise LoadError(
                f"{setting!r} in {source!r} is not understood; write layers=N or seed=S with a "
                "whole number."
            )
        values[key] = int(value)
    if not 1 <= values["layers"] <= full:
        raise LoadError(
            f"layers={values['layers']} in {source!r} does not fit; {name} has {full} layers, so "
            f"give 1 to {full}."
        )
    return RandomSource(name, values["layers"], values["seed"])


def config(name: str, *, layers: int | None = None) -> PreTrainedConfig:
    """Return the transformers config of a shape, cut to its first `layers` layers.

    End-of-text is unset: random weights would emit it by chance and cut a timed answer short.
    """
    import transformers

    shape = SHAPES[name]
    settings = dict(shape.settings)
    if layers is not None:
        settings["num_hidden_layers"] = layers  # the class derives layer_types from it
    built = getattr(transformers, shape.config)(**settings, bos_token_id=None, eos_token_id=None)
    built.architectures = [shape.config.removesuffix("Config") + "ForCausalLM"]
    return built
