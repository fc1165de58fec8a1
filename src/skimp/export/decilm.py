"""The target `decilm`: Llama-shaped models as DeciLMForCausalLM, which stock vLLM runs.

Layers of that class may lack attention or FF, and FFs may have any width (Nvidia's Nemotron-NAS
models). What it has no word for is said in words that it has; see :mod:`.blocks`.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skimp.export import configuration_decilm, shaped
from skimp.export.blocks import Block, Packed, attention_maps, ffn_maps, pack
from skimp.export.forms import DTYPES, PLAIN
from skimp.export.shaped import Affine
from skimp.export.target import Check, Obstacle, Product

CHECK = Check(
    script="checks/vllm.py",
    module="vllm",
    install="pip install vllm",
    tells=("logits", "tokens"),
    environment={
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    },
)
_CONFIG = "configuration_decilm"
# Engines other than vLLM take FF widths from a factor, and round them up to multiples of this.
_MULTIPLE = 256
_COPIED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)


class DeciLM:
    """Safetensors of Llama's names, a config with one entry a layer, and the config's class."""

    name = "decilm"
    engines = ("vLLM",)
    holds = "Llama, Mistral and Qwen2 models: dropped sublayers with any fill, narrower FFs"
    lacks = "other families; attention windows"
    formats = PLAIN
    check = CHECK

    def obstacles(self, product: Product, form: str) -> list[Obstacle]:
        """What keeps the model from being Llama-shaped."""
        del form
        return shaped.obstacles(product)

    def write(self, product: Product, form: str, folder: Path) -> Path:
        """Write the folder."""
        from huggingface_hub import save_torch_state_dict

        packed = packed_of(product)
        dtype = DTYPES[form]
        weights = {
            name: weight.to(dtype).contiguous() for name, weight in tensors(product, packed).items()
        }
        save_torch_state_dict(weights, folder)
        config = config_of(product, packed, form)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / f"{_CONFIG}.py").write_text(inspect.getsource(configuration_decilm))
        if product.model.generation_config is not None:
            product.model.generation_config.save_pretrained(folder)
        if product.tokenizer is not None:
            product.tokenizer.save_pretrained(folder)
        return folder

    def loading(self, product: Product, form: str) -> str:
        """How to load it, and which other engines can."""
        del form
        packed = packed_of(product)
        lines = [_VLLM]
        if packed.folded:
            lines.append(_FOLDED.format(what=", ".join(packed.folded)))
        lines.append(_OTHERS if suits_others(packed) else _NO_OTHERS)
        return "\n".join(lines)


TARGET = DeciLM()
_VLLM = """\
```sh
vllm serve MODEL --trust-remote-code
```
The remote code is the config's class alone (`configuration_decilm.py`); the model's class,
`DeciLMForCausalLM`, is vLLM's own.
"""
_FOLDED = """\
What runs before the first attention hangs on the token alone and is in the embedding: {what}.
"""
_OTHERS = """\
SGLang and TensorRT-LLM have the same class and are told the FFs' widths in the way that they read
(`ffn_mult`); neither was tried with this folder.
"""
_NO_OTHERS = """\
SGLang and TensorRT-LLM have a class of the same name, but know neither biases in FFs nor widths
that are no multiple of 256, so they refuse this folder.
"""


def packed_of(product: Product) -> Packed:
    """The model's blocks; it must have no obstacles."""
    return pack(shaped.layers(product), tied=product.anatomy.tied)


def suits_others(packed: Packed) -> bool:
    """Whether engines that know no biases in FFs, and widths in steps of 256 only, are right."""
    widths = [len(block.ffn.gate.weight) for block in packed.blocks if block.ffn is not None]
    return not packed.ffn_biased and all(width % _MULTIPLE == 0 for width in widths)


def config_of(product: Product, packed: Packed, form: str) -> dict[str, Any]:
    """The contents of config.json."""
    config = product.config
    heads = config.num_attention_heads
    rope = dict(getattr(config, "rope_parameters", None) or {})
    found = {name: getattr(config, name) for name in _COPIED if hasattr(config, name)}
    others = suits_others(packed)
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": configuration_decilm.DeciLMConfig.model_type,
        "auto_map": {"AutoConfig": f"{_CONFIG}.DeciLMConfig"},
        **found,
        "num_hidden_layers": len(packed.blocks),
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "hidden_act": "silu",
        "attention_bias": packed.attention_biased,
        "mlp_bias": packed.ffn_biased,
        "rope_parameters": rope,
        "rope_theta": rope.get("rope_theta", 10000.0),
        "dtype": str(DTYPES[form]).removeprefix("torch."),
        "torch_dtype": str(DTYPES[form]).removeprefix("torch."),
        "block_configs": [_block_config(each, config, others) for each in packed.blocks],
    }


def _block_config(block: Block, config: Any, others: bool) -> dict[str, Any]:
    group = config.num_attention_heads // config.num_key_value_heads
    attention: dict[str, Any] = {
        "no_op": block.attention is None,
        "replace_with_linear": False,
        "n_heads_in_group": None if block.attention is None else group,
    }
    ffn: dict[str, Any] = {"no_op": block.ffn is None, "replace_with_linear": False}
    if block.ffn is not None:
        width = len(block.ffn.gate.weight)
        ffn["intermediate_size"] = width
        # Without the factor those engines refuse the folder, which beats being silently wrong.
        if others:
            ffn["ffn_mult"] = 1.5 * width / config.hidden_size
    elif others:
        ffn["ffn_mult"] = None
    return {"attention": attention, "ffn": ffn}


def tensors(product: Product, packed: Packed) -> dict[str, Tensor]:
    """The weights by the names of Llama's class."""
    model = product.model
    embedding = model.get_input_embeddings().weight.detach()
    found = {
        "model.embed_tokens.weight": packed.folded_into(embedding, product.config.rms_norm_eps)
    }
    for index, block in enumerate(packed.blocks):
        prefix = f"model.layers.{index}"
        if block.attention is not None:
            found[f"{prefix}.input_layernorm.weight"] = block.attention.norm
            for name, affine in attention_maps(block.attention).items():
                found |= _affine(f"{prefix}.self_attn.{name}", affine, packed.attention_biased)
        if block.ffn is not None:
            found[f"{prefix}.post_attention_layernorm.weight"] = block.ffn.norm
            for name, affine in ffn_maps(block.ffn).items():
                found |= _affine(f"{prefix}.mlp.{name}", affine, packed.ffn_biased)
    found["model.norm.weight"] = model.model.norm.weight.detach()
    if not product.anatomy.tied:
        found["lm_head.weight"] = model.lm_head.weight.detach()
    return found


def _affine(name: str, affine: Affine, biased: bool) -> dict[str, Tensor]:
    """A map's weights; where any of the model has a bias, all must have one."""
    found = {f"{name}.weight": affine.weight}
    if biased:
        zeros = torch.zeros(len(affine.weight), dtype=affine.weight.dtype)
        found[f"{name}.bias"] = zeros if affine.bias is None else affine.bias
    return found
