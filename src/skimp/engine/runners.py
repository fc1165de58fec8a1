"""How a planned model is run over a request's tokens: on the engine's slots, or as it comes."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from skimp.engine.probing import forward, last_only
from skimp.engine.slots import Pass, Slot, SlotCache, SlotShape
from skimp.engine.state import State


class Runner(Protocol):
    """Runs a model; everything about a request is in its state.

    Attributes:
        gathers: whether a decode step may as well read copies of the weights of experts.
        fixed: whether every decode step of a batch must have the same shapes, whatever was chosen.
        records: whether its decode steps run from a graph that a GPU recorded.
    """

    gathers: bool
    fixed: bool
    records: bool

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty store for `batch` sequences of at most `capacity` columns."""
        ...

    def cache_bytes(self, batch: int, capacity: int) -> int:
        """Bytes of that store once it is full."""
        ...

    def prefill(self, state: State, tokens: Tensor) -> Tensor:
        """Logits [B, V] after `tokens` [B, Q], which follow what the state holds."""
        ...

    def decode(self, state: State, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token a sequence, `tokens` [B]."""
        ...

    def can_rewind(self, state: State) -> bool:
        """Whether the state may be shortened, so that its last tokens are read again."""
        ...


class SlotRunner:
    """Runs a shadow whose attention goes through slots."""

    gathers = True
    fixed = False
    records = False

    def __init__(self, model: Any, shapes: Mapping[int, SlotShape]) -> None:
        self.model = self.decoder = model
        self.shapes = shapes
        self.like = next(model.parameters())

    def new_cache(self, batch: int, capacity: int) -> dict[int, Slot]:
        like = self.like.detach()
        return {
            index: Slot.empty(shape, batch, capacity, like) for index, shape in self.shapes.items()
        }

    def cache_bytes(self, batch: int, capacity: int) -> int:
        numbers = sum(shape.elements(capacity) for shape in self.shapes.values())
        return batch * numbers * self.like.element_size()

    def prefill(self, state: State, tokens: Tensor) -> Tensor:
        run = Pass(state.pads, state.padded, queries=tokens.shape[1], start=state.length)
        return forward(self.model, SlotCache(state.cache, run), run, tokens)

    def decode(self, state: State, tokens: Tensor) -> Tensor:
        at = torch.full((1,), state.length, device=state.pads.device)
        return self.step(state.cache, state.pads, at, tokens)

    def can_rewind(self, state: State) -> bool:
        return all(slot.size >= state.length for slot in state.cache.values())

    def step(self, slots: Mapping[int, Slot], pads: Tensor, at: Tensor, tokens: Tensor) -> Tensor:
        """A decode step as a function of tensors alone, so that it can be compiled."""
        run = Pass(pads, padded=True, queries=1, at=at)
        return forward(self.decoder, SlotCache(slots, run), run, tokens[:, None])


class PlainRunner:
    """Runs a planned model with transformers' own cache and attention, whatever they do."""

    gathers = True
    fixed = False
    records = False

    def __init__(self, model: Any, kv_bytes_per_token: int) -> None:
        self.model = model
        self._token_bytes = kv_bytes_per_token

    def new_cache(self, batch: int, capacity: int) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    def cache_bytes(self, batch: int, capacity: int) -> int:
        return batch * capacity * self._token_bytes

    def prefill(self, state: State, tokens: Tensor) -> Tensor:
        end = state.length + tokens.shape[1]
        columns = torch.arange(end, device=state.pads.device)
        real = columns >= state.pads[:, None]
        positions = (columns - state.pads[:, None]).clamp(min=0)
        output = self.model(
            input_ids=tokens,
            attention_mask=real.long(),
            position_ids=positions[:, state.length :],
            past_key_values=state.cache,
            use_cache=True,
            **last_only(self.model, tokens.shape[1], tokens.device),
        )
        return output.logits[:, -1]

    def decode(self, state: State, tokens: Tensor) -> Tensor:
        return self.prefill(state, tokens[:, None])

    def can_rewind(self, state: State) -> bool:
        return False


def cache_tensors(cache: Any) -> list[Tensor]:
    """The tensors that a runner's store holds."""
    if isinstance(cache, dict):
        return [tensor for slot in cache.values() for tensor in (slot.keys, slot.values)]
    return [
        value
        for layer in getattr(cache, "layers", [])
        for value in vars(layer).values()
        if isinstance(value, Tensor)
    ]


def pad_left(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, longest] padded on the left, and the number of pads of each sequence [B]."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    rows = [[pad] * gap + prompt for gap, prompt in zip(pads, prompts, strict=True)]
    return torch.tensor(rows), torch.tensor(pads)
