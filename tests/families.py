"""Tiny random models of many architecture families, the ground that the contract tests stand on.

A family joins by registration alone: decorate a function that returns its config. Where its
branches enter and leave is written down here a second time, on purpose, so that the tests do not
take skimp's own word for it. Weights are large enough that leaving any part out shows in the logits
and norms and biases are random too, so that a bug that forgets one shows as well.
"""

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
            _randomise(model)
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


def _randomise(model: nn.Module) -> None:
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


_SELF = Site("self_attn", "self_attn")
_MLP = Site("mlp", "mlp")


def _family(
    name: str,
    *,
    layers: str = "model.layers",
    attention: Site = _SELF,
    ffn: Site = _MLP,
    listed: bool = True,
    static_cache: bool = True,
) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    def register(config: Callable[[], Config]) -> Callable[[], Config]:
        assert name not in SAMPLES
        SAMPLES[name] = Sample(name, config, layers, attention, ffn, listed, static_cache)
        return config

    return register


def _make(model_type: str, **settings: Any) -> Config:
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


def _alternating(count: int) -> list[str]:
    return [("sliding_attention", "full_attention")[i % 2] for i in range(count)]


# --- families with a row ------------------------------------------------------------------------


@_family("llama")
def _llama() -> Config:
    return _make("llama")


@_family("llama-tied-biased")
def _llama_tied() -> Config:
    return _make("llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True)


@_family("mistral")
def _mistral() -> Config:
    return _make("mistral", sliding_window=WINDOW)


@_family("qwen2")
def _qwen2() -> Config:
    types = _alternating(4)[::-1]
    return _make("qwen2", use_sliding_window=True, sliding_window=WINDOW, layer_types=types)


@_family("qwen3")
def _qwen3() -> Config:
    types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    return _make(
        "qwen3", use_sliding_window=True, sliding_window=WINDOW, layer_types=types, head_dim=12
    )


_SANDWICH = {
    "attention": Site("self_attn", "post_attention_layernorm"),
    "ffn": Site("mlp", "post_feedforward_layernorm"),
}


@_family("gemma2", **_SANDWICH)
def _gemma2() -> Config:
    return _make("gemma2", sliding_window=WINDOW, head_dim=8, tie_word_embeddings=True)


@_family("gemma3_text", **_SANDWICH)
def _gemma3() -> Config:
    types = ["sliding_attention"] * 5 + ["full_attention"]
    return _make(
        "gemma3_text",
        num_hidden_layers=6,
        layer_types=types,
        sliding_window=WINDOW,
        head_dim=8,
        tie_word_embeddings=True,
    )


@_family("phi3")
def _phi3() -> Config:
    return _make("phi3")


@_family("olmo2", **_SANDWICH)
def _olmo2() -> Config:
    return _make("olmo2")


_OPT = {
    "layers": "model.decoder.layers",
    "ffn": Site("fc1", "fc2"),
}


@_family("opt", **_OPT)
def _opt() -> Config:
    return _make("opt", ffn_dim=48, word_embed_proj_dim=32)


@_family("opt-post-norm", **_OPT)
def _opt_post() -> Config:
    # Like OPT-350m, the one OPT of this kind: embeddings narrower than the residual stream.
    return _make("opt", ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)


@_family("gpt2", layers="transformer.h", attention=Site("attn", "attn"))
def _gpt2() -> Config:
    return _make("gpt2", tie_word_embeddings=True)


@_family("gpt2-scaled", layers="transformer.h", attention=Site("attn", "attn"))
def _gpt2_scaled() -> Config:
    return _make("gpt2", scale_attn_by_inverse_layer_idx=True)


_NEOX = {"layers": "gpt_neox.layers", "attention": Site("attention", "attention")}


@_family("gpt_neox", **_NEOX)
def _gpt_neox() -> Config:
    return _make("gpt_neox", use_parallel_residual=True, rotary_pct=0.5)


@_family("gpt_neox-sequential", **_NEOX)
def _gpt_neox_sequential() -> Config:
    return _make("gpt_neox", use_parallel_residual=False)


_FALCON = {"layers": "transformer.h", "attention": Site("self_attention", "self_attention")}


@_family("falcon-7b", **_FALCON)
def _falcon_7b() -> Config:
    return _make("falcon", multi_query=True, parallel_attn=True, bias=False)


@_family("falcon-40b", **_FALCON)
def _falcon_40b() -> Config:
    return _make("falcon", new_decoder_architecture=True, num_kv_heads=2, bias=False)


@_family("falcon-11b", **_FALCON)
def _falcon_11b() -> Config:
    return _make("falcon", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)


@_family("falcon-alibi", **_FALCON, static_cache=False)
def _falcon_alibi() -> Config:
    return _make("falcon", multi_query=False, parallel_attn=False, alibi=True, bias=True)


@_family("mixtral")
def _mixtral() -> Config:
    return _make("mixtral", num_local_experts=4, num_experts_per_tok=2)


# --- families that skimp must discover ----------------------------------------------------------


@_family("granite", listed=False)
def _granite() -> Config:
    return _make("granite", residual_multiplier=0.7, embedding_multiplier=2.0)


@_family("starcoder2", listed=False)
def _starcoder2() -> Config:
    return _make("starcoder2", use_bias=True)


@_family("stablelm", listed=False)
def _stablelm() -> Config:
    return _make("stablelm", use_qkv_bias=True)


@_family("stablelm-parallel", listed=False)
def _stablelm_parallel() -> Config:
    return _make("stablelm", use_parallel_residual=True)


@_family("smollm3", listed=False)
def _smollm3() -> Config:
    return _make("smollm3", no_rope_layers=[1, 0, 1, 0])


@_family("cohere", listed=False)
def _cohere() -> Config:
    return _make("cohere", use_qk_norm=True)


@_family("cohere2", listed=False)
def _cohere2() -> Config:
    return _make("cohere2", sliding_window=WINDOW, layer_types=_alternating(4))


@_family("glm", listed=False)
def _glm() -> Config:
    return _make("glm", head_dim=8)


@_family(
    "glm4",
    attention=Site("self_attn", "post_self_attn_layernorm"),
    ffn=Site("mlp", "post_mlp_layernorm"),
    listed=False,
)
def _glm4() -> Config:
    return _make("glm4", head_dim=8)


@_family("phi", listed=False)
def _phi() -> Config:
    return _make("phi")


@_family("qwen2_moe", listed=False)
def _qwen2_moe() -> Config:
    return _make(
        "qwen2_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        mlp_only_layers=[2],
    )


@_family("qwen3_moe", listed=False)
def _qwen3_moe() -> Config:
    return _make("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


@_family("olmo", listed=False)
def _olmo() -> Config:
    return _make("olmo")


@_family("olmoe", listed=False)
def _olmoe() -> Config:
    return _make("olmoe", num_experts=4, num_experts_per_tok=2)


@_family("gemma", listed=False)
def _gemma() -> Config:
    return _make("gemma", head_dim=8, tie_word_embeddings=True)


@_family("exaone4", **_SANDWICH, listed=False)
def _exaone4() -> Config:
    return _make("exaone4", sliding_window=WINDOW, layer_types=_alternating(4))


@_family("persimmon", listed=False)
def _persimmon() -> Config:
    return _make("persimmon")


@_family("nemotron", listed=False)
def _nemotron() -> Config:
    return _make("nemotron", head_dim=8)


@_family("gptj", layers="transformer.h", attention=Site("attn", "attn"), listed=False)
def _gptj() -> Config:
    return _make("gptj", rotary_dim=4)


@_family("gpt_oss", listed=False)
def _gpt_oss() -> Config:
    return _make(
        "gpt_oss",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=_alternating(4),
    )


@_family("deepseek_v3", listed=False)
def _deepseek_v3() -> Config:
    return _make(
        "deepseek_v3",
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
    )


# --- stacks that skimp must refuse --------------------------------------------------------------


def _refused(name: str) -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    def register(config: Callable[[], Config]) -> Callable[[], Config]:
        REFUSED[name] = config
        return config

    return register


@_refused("bloom")  # the branches add the residual stream themselves
def _bloom() -> Config:
    return _make("bloom")


@_refused("mpt")  # likewise
def _mpt() -> Config:
    return _make("mpt", d_model=32, n_heads=4, n_layers=4, expansion_ratio=2)


@_refused("mamba")  # no attention at all
def _mamba() -> Config:
    return _make("mamba", state_size=4)


@_refused("jamba")  # attention in some layers only
def _jamba() -> Config:
    return _make("jamba", attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False)


@_refused("qwen3_next")  # likewise, and the others are called attention as well
def _qwen3_next() -> Config:
    return _make("qwen3_next", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


@_refused("falcon_h1")  # attention beside a recurrence
def _falcon_h1() -> Config:
    return _make("falcon_h1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8)


@_refused("gemma3n_text")  # a second input in every layer, and shared KV caches
def _gemma3n() -> Config:
    return _make(
        "gemma3n_text",
        num_kv_shared_layers=2,
        head_dim=8,
        laurel_rank=4,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )


@_refused("llama4_text")  # dense and expert layers return different things
def _llama4() -> Config:
    return _make(
        "llama4_text", num_local_experts=4, interleave_moe_layer_step=2, intermediate_size_mlp=48
    )
