"""The families that vLLM can run planned, and where vLLM keeps them; plain names, nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stock:
    """vLLM's own class for a family.

    `module`: under `vllm.model_executor.models`. `layers`: the module there, usually the same one,
    that builds the layers by vLLM's `make_layers`.
    """

    module: str
    model: str
    layers: str

    @property
    def planned(self) -> str:
        """What the planned model's class is called, in vLLM's registry and in configs."""
        return f"Skimp{self.model}"


STOCK: Mapping[str, Stock] = {
    "llama": Stock("llama", "LlamaForCausalLM", "llama"),
    "mistral": Stock("mistral", "MistralForCausalLM", "llama"),
    "qwen2": Stock("qwen2", "Qwen2ForCausalLM", "qwen2"),
    "qwen3": Stock("qwen3", "Qwen3ForCausalLM", "qwen2"),
    "gemma2": Stock("gemma2", "Gemma2ForCausalLM", "gemma2"),
    "gemma3_text": Stock("gemma3", "Gemma3ForCausalLM", "gemma3"),
}
