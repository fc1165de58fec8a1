"""transformers as most people run it: eager, a growing cache, PyTorch's own attention."""

from typing import Any

import torch
import transformers
from bench.engines.base import Options


def versions() -> dict[str, str]:
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def load(options: Options) -> "Eager":
    return Eager(open_model(options))


def open_model(options: Options) -> Any:
    """The model in bfloat16, in eval mode, on as many threads as asked for."""
    from skimp.models.load import load as load_model

    torch.set_num_threads(options.threads)
    model: Any = load_model(options.source, dtype="bf16", seed=options.seed).model
    model.set_attn_implementation("sdpa")
    return model


class Eager:
    """One request with a `DynamicCache`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None

    def prefill(self, ids: list[int]) -> int:
        self._cache = transformers.DynamicCache(config=self._model.config)
        return self._read(ids)

    def decode(self, token: int) -> int:
        return self._read([token])

    @torch.inference_mode()
    def _read(self, ids: list[int]) -> int:
        output = self._model(
            input_ids=torch.tensor([ids]),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return int(output.logits[0, -1].argmax())
