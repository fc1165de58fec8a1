"""DeciLM read by a second, slow implementation, that shares no code with the one that writes it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional


def run(folder: Path, tokens: Tensor) -> Tensor:
    """Logits [S, vocabulary] of tokens [S], as engines run the folder's class.

    The residual stream does not exist before the first attention has run, as in vLLM and SGLang.
    """
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    used = {"model.embed_tokens.weight", "model.norm.weight"}

    def linear(name: str, x: Tensor) -> Tensor:
        names = [f"{name}.weight", f"{name}.bias"]
        biased = config["mlp_bias"] if ".mlp." in name else config["attention_bias"]
        assert (names[1] in weights) == (biased and "lm_head" not in name)
        used.update(names)
        return functional.linear(x, weights[names[0]], weights.get(names[1]))

    def norm(name: str, x: Tensor) -> Tensor:
        used.add(f"{name}.weight")
        scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])
        return scaled * weights[f"{name}.weight"]

    state = weights["model.embed_tokens.weight"][tokens]
    begun = False
    assert len(config["block_configs"]) == config["num_hidden_layers"]
    for index, block in enumerate(config["block_configs"]):
        path = f"model.layers.{index}"
        if not block["attention"]["no_op"]:
            begun = True
            x = norm(f"{path}.input_layernorm", state)
            maps = {n: linear(f"{path}.self_attn.{n}_proj", x) for n in "qkv"}
            mixed = attend(config, block["attention"]["n_heads_in_group"], **maps)
            state = state + linear(f"{path}.self_attn.o_proj", mixed)
        if not block["ffn"]["no_op"]:
            assert begun, "engines cannot run an FF before the first attention"
            x = norm(f"{path}.post_attention_layernorm", state)
            gate, up = (linear(f"{path}.mlp.{n}_proj", x) for n in ("gate", "up"))
            assert gate.shape[-1] == block["ffn"]["intermediate_size"]
            state = state + linear(f"{path}.mlp.down_proj", functional.silu(gate) * up)
    state = norm("model.norm", state)
    if config["tie_word_embeddings"]:
        logits = state @ weights["model.embed_tokens.weight"].T
    else:
        logits = linear("lm_head", state)
    assert used >= weights.keys(), "weights that no layer reads"
    return logits


def attend(config: dict, group: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads, width = config["num_attention_heads"], config["head_dim"]
    positions = torch.arange(len(q), dtype=torch.float32)
    theta = config["rope_parameters"]["rope_theta"]
    angles = positions[:, None] * theta ** (-torch.arange(0, width, 2) / width)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def turned(x: Tensor) -> Tensor:
        first, second = x.view(len(x), -1, width).chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    query = turned(q).transpose(0, 1)
    key, value = turned(k), v.view(len(v), -1, width)
    assert key.shape[1] == heads // group
    keys, values = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (key, value))
    mixed = functional.scaled_dot_product_attention(query, keys, values, is_causal=True)
    return mixed.transpose(0, 1).flatten(1)
