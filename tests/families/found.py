"""Families that skimp must discover."""

from tests.families.samples import SANDWICH, WINDOW, Config, Site, alternating, family, make


@family("granite", listed=False)
def _granite() -> Config:
    return make("granite", residual_multiplier=0.7, embedding_multiplier=2.0)


@family("starcoder2", listed=False)
def _starcoder2() -> Config:
    return make("starcoder2", use_bias=True)


@family("stablelm", listed=False)
def _stablelm() -> Config:
    return make("stablelm", use_qkv_bias=True)


@family("stablelm-parallel", listed=False)
def _stablelm_parallel() -> Config:
    return make("stablelm", use_parallel_residual=True)


@family("smollm3", listed=False)
def _smollm3() -> Config:
    return make("smollm3", no_rope_layers=[1, 0, 1, 0])


@family("cohere", listed=False)
def _cohere() -> Config:
    return make("cohere", use_qk_norm=True)


@family("cohere2", listed=False)
def _cohere2() -> Config:
    return make("cohere2", sliding_window=WINDOW, layer_types=alternating(4))


@family("glm", listed=False)
def _glm() -> Config:
    return make("glm", head_dim=8)


@family(
    "glm4",
    attention=Site("self_attn", "post_self_attn_layernorm"),
    ffn=Site("mlp", "post_mlp_layernorm"),
    listed=False,
)
def _glm4() -> Config:
    return make("glm4", head_dim=8)


@family("phi", listed=False)
def _phi() -> Config:
    return make("phi")


@family("qwen2_moe", listed=False)
def _qwen2_moe() -> Config:
    return make(
        "qwen2_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        mlp_only_layers=[2],
    )


@family("qwen3_moe", listed=False)
def _qwen3_moe() -> Config:
    return make("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


@family("olmo", listed=False)
def _olmo() -> Config:
    return make("olmo")


@family("olmoe", listed=False)
def _olmoe() -> Config:
    return make("olmoe", num_experts=4, num_experts_per_tok=2)


@family("gemma", listed=False)
def _gemma() -> Config:
    return make("gemma", head_dim=8, tie_word_embeddings=True)


@family("exaone4", **SANDWICH, listed=False)
def _exaone4() -> Config:
    return make("exaone4", sliding_window=WINDOW, layer_types=alternating(4))


@family("persimmon", listed=False)
def _persimmon() -> Config:
    return make("persimmon")


@family("nemotron", listed=False)
def _nemotron() -> Config:
    return make("nemotron", head_dim=8)


@family("gptj", layers="transformer.h", attention=Site("attn", "attn"), listed=False)
def _gptj() -> Config:
    return make("gptj", rotary_dim=4)


@family("gpt_oss", listed=False)
def _gpt_oss() -> Config:
    return make(
        "gpt_oss",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=alternating(4),
    )


@family("deepseek_v3", listed=False)
def _deepseek_v3() -> Config:
    return make(
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
