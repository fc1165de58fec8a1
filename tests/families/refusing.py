"""Stacks that skimp must refuse."""

from tests.families.samples import VOCABULARY, Config, make, refused


@refused("bloom")  # the branches add the residual stream themselves
def _bloom() -> Config:
    return make("bloom")


@refused("mpt")  # likewise
def _mpt() -> Config:
    return make("mpt", d_model=32, n_heads=4, n_layers=4, expansion_ratio=2)


@refused("mamba")  # no attention at all
def _mamba() -> Config:
    return make("mamba", state_size=4)


@refused("jamba")  # attention in some layers only
def _jamba() -> Config:
    return make("jamba", attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False)


@refused("qwen3_next")  # likewise, and the others are called attention as well
def _qwen3_next() -> Config:
    return make("qwen3_next", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)


@refused("falcon_h1")  # attention beside a recurrence
def _falcon_h1() -> Config:
    return make("falcon_h1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8)


@refused("gemma3n_text")  # a second input in every layer, and shared KV caches
def _gemma3n() -> Config:
    return make(
        "gemma3n_text",
        num_kv_shared_layers=2,
        head_dim=8,
        laurel_rank=4,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCABULARY,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )


@refused("llama4_text")  # dense and expert layers return different things
def _llama4() -> Config:
    return make(
        "llama4_text", num_local_experts=4, interleave_moe_layer_step=2, intermediate_size_mlp=48
    )
