"""What a family's tiny model is, and how one joins."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

Config = Any
VOCABULARY = 97
WINDOW = 5


@dataclass(frozen=True)
class Site:
    """Where a branch enters (it reads its normalised input) and leaves (its contribution)."""

    enter: str
    leave: str


@dataclass(frozen=True)
class Sample:
    """One family's tiny model.

    `listed`: skimp has a row for it, else it must discover it. `static_cache`: transformers' own
    dense model runs with a StaticCache.
    """

    name: str
    config: Callable[[], Config]
    layers: str
    attention: Site
    ffn: Site
    listed: bool
    static_cache: bool = True

    def build(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        attention: str | None = None,
    ) -> nn.Module:
        """The model with random weights, in eval mode, on the CPU.

        `attention` is transformers' implementation of it (None: the family's default).
        """
        config = self.config()
        config.dtype = dtype
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
            randomise(model)
        model.generation_config.eos_token_id = None  # or greedy decoding may stop early
        model.generation_config.pad_token_id = 0
        for weight in model.parameters():  # and no buffer: rotations stay exact, as when loaded
            weight.data = weight.data.to(dtype)
        return model.eval()

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        found = model.get_submodule(self.layers)
        assert isinstance(found, nn.ModuleList)
        return found


SAMPLES: dict[str, Sample] = {}
# Stacks that are no plain chain of attention and FF branches, by type: skimp must refuse these.
REFUSED: dict[str, Callable[[], Config]] = {}


def listed() -> list[str]:
    return [name for name, sample in SAMPLES.items() if sample.listed]


def discovered() -> list[str]:
    return [name for name, sample in SAMPLES.items() if not sample.listed]


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    return SAMPLES[name].build(seed, dtype)


def randomise(model: nn.Module) -> None:
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            with torch.no_grad():
                if isinstance(module, nn.Embedding):
                    weight.normal_(std=1.0)
                elif weight.dim() > 1:
                    weight.normal_(std=1.5 / weight.shape[-1] ** 0.5)
                elif "norm" in type(module).__name__.lower() and name == "weight":
                    weight.add_(torch.randn_like(weight) * 0.3)
                else:
                    weight.normal_(std=0.3)
    model.tie_weights()


SELF = Site("self_attn", "self_attn")
MLP = Site("mlp", "mlp")
SANDWICH = {
    "attention": Site("self_attn", "post_attention_layernorm"),
    "ffn": Site("mlp", "post_feedforward_layernorm"),
}


def family(
    name: str,
    *,
    layers: str = "model.layers",
    attention: Site = SELF,
    ffn: Site = MLP,
    listed: bool = True,
    static_cache: bool = True,
) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    def register(config: Callable[[], Config]) -> Callable[[], Config]:
        assert name not in SAMPLES
        SAMPLES[name] = Sample(name, config, layers, attention, ffn, listed, static_cache)
        return config

    return register


def make(model_type: str, **settings: Any) -> Config:
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    # What a family's config has no word for would stay in it and mislead whoever looks.
    default = AutoConfig.for_model(model_type)
    known = {key: value for key, value in common.items() if hasattr(default, key)}
    return AutoConfig.for_model(model_type, **{**known, **settings})


def alternating(count: int) -> list[str]:
    return [("sliding_attention", "full_attention")[i % 2] for i in range(count)]


def refused(name: str) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    def register(config: Callable[[], Config]) -> Callable[[], Config]:
        REFUSED[name] = config
        return config

    return register
