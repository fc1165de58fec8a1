"""Tiny models written to disk in the forms that skimp reads: folders and GGUF files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from skimp.errors import LoadError
from skimp.models.load import load

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("Ġ", "Ġ"), ("a", "b")]


def vocabulary() -> dict[str, int]:
    """Special tokens, every byte, and the merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {word: i for i, word in enumerate([*SPECIAL, *alphabet, "ĠĠ", "ab"])}


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(vocab=vocabulary(), merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL[0])


def llama(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    wanted: dict[str, Any] = dict(
        vocab_size=len(vocabulary()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(wanted | settings))).eval()


def write(folder: Path, model: Any = None, **saving: Any) -> Path:
    (model or llama()).save_pretrained(folder, **saving)
    tokenizer().save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change config.json; a value of None takes the key out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))


def write_gguf(path: Path, model: LlamaForCausalLM, *, pre: str = "smollm", **extra: Any) -> Path:
    """Write a Llama model the way llama.cpp's converter does; `extra` are further metadata.

    `extra` may hold `tensors`, a mapping of further float32 tensors.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    words = list(vocabulary())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3 if word in SPECIAL else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}")
    tensors = dict(_tensors(model)) | extra.pop("tensors", {})
    for key, value in extra.items():
        name = key.replace("__", ".")
        writer.add_string(name, value) if isinstance(value, str) else writer.add_uint32(name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _tensors(model: LlamaForCausalLM) -> Any:
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    if not model.config.tie_word_embeddings:
        yield "output.weight", state["lm_head.weight"]
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in _NAMES.items():
            tensor = state[f"model.layers.{layer}.{ours}.weight"]
            heads = {
                "attn_q": model.config.num_attention_heads,
                "attn_k": model.config.num_key_value_heads,
            }
            if theirs in heads:  # llama.cpp rotates neighbours, transformers the two halves
                rows, columns = tensor.shape
                halves = tensor.reshape(heads[theirs], 2, rows // heads[theirs] // 2, columns)
                tensor = halves.swapaxes(1, 2).reshape(rows, columns)
            yield f"blk.{layer}.{theirs}.weight", tensor


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of model.safetensors; None takes one out."""
    tensors = load_file(folder / "model.safetensors")
    merged = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    save_file(merged, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(source: Path | str, **options: Any) -> str:
    """The message that `load` refuses `source` with; one sentence, one line."""
    with pytest.raises(LoadError) as caught:
        load(str(source), **({"dtype": "fp32"} | options))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message
