"""Families that skimp has a row for."""

from tests.families.samples import SANDWICH, WINDOW, Config, Site, alternating, family, make


@family("llama")
def _llama() -> Config:
    return make("llama")


@family("llama-tied-biased")
def _llama_tied() -> Config:
    return make("llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True)


@family("mistral")
def _mistral() -> Config:
    return make("mistral", sliding_window=WINDOW)


@family("qwen2")
def _qwen2() -> Config:
    types = alternating(4)[::-1]
    return make("qwen2", use_sliding_window=True, sliding_window=WINDOW, layer_types=types)


@family("qwen3")
def _qwen3() -> Config:
    types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    return make(
        "qwen3", use_sliding_window=True, sliding_window=WINDOW, layer_types=types, head_dim=12
    )


@family("gemma2", **SANDWICH)
def _gemma2() -> Config:
    return make("gemma2", sliding_window=WINDOW, head_dim=8, tie_word_embeddings=True)


@family("gemma3_text", **SANDWICH)
def _gemma3() -> Config:
    types = ["sliding_attention"] * 5 + ["full_attention"]
    return make(
        "gemma3_text",
        num_hidden_layers=6,
        layer_types=types,
        sliding_window=WINDOW,
        head_dim=8,
        tie_word_embeddings=True,
    )


@family("phi3")
def _phi3() -> Config:
    return make("phi3")


@family("olmo2", **SANDWICH)
def _olmo2() -> Config:
    return make("olmo2")


_OPT = {
    "layers": "model.decoder.layers",
    "ffn": Site("fc1", "fc2"),
}


@family("opt", **_OPT)
def _opt() -> Config:
    return make("opt", ffn_dim=48, word_embed_proj_dim=32)


@family("opt-post-norm", **_OPT)
def _opt_post() -> Config:
    # Like OPT-350m, the one OPT of this kind: embeddings narrower than the residual stream.
    return make("opt", ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)


@family("gpt2", layers="transformer.h", attention=Site("attn", "attn"))
def _gpt2() -> Config:
    return make("gpt2", tie_word_embeddings=True)


@family("gpt2-scaled", layers="transformer.h", attention=Site("attn", "attn"))
def _gpt2_scaled() -> Config:
    return make("gpt2", scale_attn_by_inverse_layer_idx=True)


_NEOX = {"layers": "gpt_neox.layers", "attention": Site("attention", "attention")}


@family("gpt_neox", **_NEOX)
def _gpt_neox() -> Config:
    return make("gpt_neox", use_parallel_residual=True, rotary_pct=0.5)


@family("gpt_neox-sequential", **_NEOX)
def _gpt_neox_sequential() -> Config:
    return make("gpt_neox", use_parallel_residual=False)


_FALCON = {"layers": "transformer.h", "attention": Site("self_attention", "self_attention")}


@family("falcon-7b", **_FALCON)
def _falcon_7b() -> Config:
    return make("falcon", multi_query=True, parallel_attn=True, bias=False)


@family("falcon-40b", **_FALCON)
def _falcon_40b() -> Config:
    return make("falcon", new_decoder_architecture=True, num_kv_heads=2, bias=False)


@family("falcon-11b", **_FALCON)
def _falcon_11b() -> Config:
    return make("falcon", new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1)


@family("falcon-alibi", **_FALCON, static_cache=False)
def _falcon_alibi() -> Config:
    return make("falcon", multi_query=False, parallel_attn=False, alibi=True, bias=True)


@family("mixtral")
def _mixtral() -> Config:
    return make("mixtral", num_local_experts=4, num_experts_per_tok=2)
