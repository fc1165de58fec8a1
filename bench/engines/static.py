"""transformers at its quickest: a cache of fixed length, the decode step compiled whole."""

from typing import Any

import torch
import transformers
from bench.engines.base import Options
from bench.engines.eager import open_model, versions

__all__ = ["load", "versions"]


def load(options: Options) -> "Static":
    return Static(open_model(options), options.length)


class Static:
    """One request with a `StaticCache` of `length` tokens, whose memory every request reuses."""

    def __init__(self, model: Any, length: int) -> None:
        self._model = model
        self._cache = transformers.StaticCache(config=model.config, max_cache_len=length)
        self._step = torch.compile(self._forward, fullgraph=True, dynamic=False)
        self._position = 0

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> int:
        self._cache.reset()
        self._position = len(ids)
        return int(self._forward(torch.tensor([ids]), torch.arange(len(ids))[None]))

    @torch.inference_mode()
    def decode(self, token: int) -> int:
        position = torch.tensor([[self._position]])
        self._position += 1
        return int(self._step(torch.tensor([[token]]), position))

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Tokens and their positions [1, S] -> the likeliest next token, a scalar."""
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1].argmax()
