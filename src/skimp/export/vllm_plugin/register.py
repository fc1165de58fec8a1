"""What vLLM calls in each of its processes, by the entry point `vllm.general_plugins`.

A planned folder's model type is `skimp_FAMILY`. Its config is read as the family's own, so that
vLLM treats it as it treats the family, with the layout under `skimp` and an architecture that leads
to the classes in :mod:`.model`.
"""

from importlib import import_module
from typing import Any

from skimp.export.vllm_plugin.families import STOCK, Stock


def register() -> None:
    """Make planned folders known to vLLM; may be called more than once."""
    transformers: Any = import_module("transformers")
    registry: Any = import_module("vllm").ModelRegistry
    for family, stock in STOCK.items():
        reader = config_reader(family, stock)
        transformers.AutoConfig.register(reader.model_type, reader, exist_ok=True)
        if stock.planned not in registry.get_supported_archs():
            registry.register_model(
                stock.planned, f"skimp.export.vllm_plugin.model:{stock.planned}"
            )


def config_reader(family: str, stock: Stock) -> Any:
    """A config class of type `skimp_FAMILY` that reads configs of the family's own class."""
    own: Any = import_module("transformers").CONFIG_MAPPING[family]

    class Reader(own):
        model_type = f"skimp_{family}"

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            data = {key: value for key, value in config_dict.items() if key != "auto_map"}
            data |= {"model_type": family, "architectures": [stock.planned]}
            return own.from_dict(data, **kwargs)

    return Reader
