"""Config of DeciLM models (model type nemotron-nas), whose layers may lack attention or FF.

Written by skimp. `block_configs` holds one entry a layer, as in Nvidia's Nemotron-NAS models.
"""

from typing import Any

try:
    from transformers import PreTrainedConfig
except ImportError:  # before transformers 5
    from transformers import PretrainedConfig as PreTrainedConfig


class Block(dict):
    """A mapping whose keys are attributes too, as engines read them; JSON all the same."""

    def __getattr__(self, name: str) -> Any:
        try:
            found = self[name]
        except KeyError:
            raise AttributeError(name) from None
        return Block(found) if isinstance(found, dict) else found


class DeciLMConfig(PreTrainedConfig):
    """Llama's fields and `block_configs`."""

    model_type = "nemotron-nas"
    rope_parameters: Any = None

    def __init__(self, block_configs: Any = (), **settings: Any) -> None:
        super().__init__(**settings)
        self.block_configs = [Block(each) for each in block_configs]
