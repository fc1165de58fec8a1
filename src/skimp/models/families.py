"""Where each architecture family keeps its sublayers: one declarative row a family.

A row names modules, never code: the transformers class itself is always what runs. A family joins
by adding a row; unknown decoders are read by :mod:`skimp.models.discovery` instead.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Branch:
    """One kind of sublayer: its modules and the norms that belong to it alone.

    Paths are relative to the layer. `before` norms feed the branch, `after` norms stand between it
    and the residual stream; a norm that something else reads as well belongs to the layer. `output`
    is the linear map whose result is added to the residual stream as it is, if there is one: a
    constant can be folded into its bias.
    """

    modules: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    output: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Module paths of an architecture family.

    `parallel`: attention and FF of a layer read the same residual state. `neutral`: a layer without
    its branches passes the residual stream on unchanged, so it can go whole. `attention_outputs`,
    `ffn_outputs`, `layer_outputs`: values that the branch's last module and the layer return (1: a
    bare tensor). `kv_heads`: heads in the KV cache, if the config does not say.
    """

    layers: str
    attention: Branch
    ffn: Branch
    final_norm: str
    parallel: bool = False
    neutral: bool = True
    attention_outputs: int = 2
    ffn_outputs: int = 1
    layer_outputs: int = 1
    kv_heads: int | None = None


_LLAMA = Family(
    layers="model.layers",
    attention=Branch(("self_attn",), before=("input_layernorm",), output=("self_attn.o_proj",)),
    ffn=Branch(("mlp",), before=("post_attention_layernorm",), output=("mlp.down_proj",)),
    final_norm="model.norm",
)
_MIXTRAL = replace(_LLAMA, ffn=replace(_LLAMA.ffn, output=()))
_GEMMA = replace(
    _LLAMA,
    attention=Branch(("self_attn",), ("input_layernorm",), ("post_attention_layernorm",)),
    ffn=Branch(("mlp",), ("pre_feedforward_layernorm",), ("post_feedforward_layernorm",)),
)
_OLMO2 = replace(
    _LLAMA,
    attention=Branch(("self_attn",), after=("post_attention_layernorm",)),
    ffn=Branch(("mlp",), after=("post_feedforward_layernorm",)),
)
_GPT2 = Family(
    layers="transformer.h",
    attention=Branch(("attn",), before=("ln_1",), output=("attn.c_proj",)),
    ffn=Branch(("mlp",), before=("ln_2",), output=("mlp.c_proj",)),
    final_norm="transformer.ln_f",
)
_OPT = Family(
    layers="model.decoder.layers",
    attention=Branch(
        ("self_attn",), before=("self_attn_layer_norm",), output=("self_attn.out_proj",)
    ),
    ffn=Branch(("fc1", "activation_fn", "fc2"), before=("final_layer_norm",), output=("fc2",)),
    final_norm="model.decoder.final_layer_norm",
)
_GPT_NEOX = Family(
    layers="gpt_neox.layers",
    attention=Branch(("attention",), before=("input_layernorm",), output=("attention.dense",)),
    ffn=Branch(("mlp",), before=("post_attention_layernorm",), output=("mlp.dense_4h_to_h",)),
    final_norm="gpt_neox.final_layer_norm",
)
_FALCON = Family(
    layers="transformer.h",
    attention=Branch(
        ("self_attention",), before=("input_layernorm",), output=("self_attention.dense",)
    ),
    ffn=Branch(("mlp",), before=("post_attention_layernorm",), output=("mlp.dense_4h_to_h",)),
    final_norm="transformer.ln_f",
    layer_outputs=2,
)


def _opt(config: Any) -> Family:
    if config.do_layer_norm_before:
        return _OPT
    # Here the norms act on the residual stream itself, so they outlive the branches and the layer.
    return replace(
        _OPT,
        attention=replace(_OPT.attention, before=(), output=()),
        ffn=replace(_OPT.ffn, before=(), output=()),
        neutral=False,
    )


def _falcon(config: Any) -> Family:
    if config.new_decoder_architecture:
        # Keys and values are repeated to every head before they are cached.
        kv_heads = config.num_attention_heads
    else:
        kv_heads = 1 if config.multi_query else config.num_attention_heads
    row = replace(_FALCON, kv_heads=kv_heads)
    norms = config.num_ln_in_parallel_attn or (2 if config.new_decoder_architecture else 1)
    if config.new_decoder_architecture and norms == 2:
        attention = replace(row.attention, before=("ln_attn",))
        return replace(
            row, attention=attention, ffn=replace(row.ffn, before=("ln_mlp",)), parallel=True
        )
    if config.new_decoder_architecture or config.parallel_attn:
        attention = replace(row.attention, before=())
        return replace(row, attention=attention, ffn=replace(row.ffn, before=()), parallel=True)
    return row


FAMILIES: dict[str, Callable[[Any], Family]] = {
    "llama": lambda config: _LLAMA,
    "mistral": lambda config: _LLAMA,
    "qwen2": lambda config: _LLAMA,
    "qwen3": lambda config: _LLAMA,
    "phi3": lambda config: _LLAMA,
    "mixtral": lambda config: _MIXTRAL,
    "gemma2": lambda config: _GEMMA,
    "gemma3_text": lambda config: _GEMMA,
    "olmo2": lambda config: _OLMO2,
    "opt": _opt,
    "gpt2": lambda config: _GPT2,
    "gpt_neox": lambda config: replace(_GPT_NEOX, parallel=config.use_parallel_residual),
    "falcon": _falcon,
}
