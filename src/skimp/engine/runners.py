"""How a planned model is run over a request's tokens: on the engine's slots, or as it comes."""

import copy
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from skimp.engine.gates import Left, Projection, Stored, Stretch, guided
from skimp.engine.probing import cache_indices, forward
from skimp.engine.slots import Pass, Slot, SlotCache, SlotShape
from skimp.engine.state import State
from skimp.models.anatomy import Anatomy
from skimp.models.some_logits import last_only


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

    def walk(self, state: State, stretch: Stretch, tokens: Tensor, end: int) -> Tensor:
        """Run a stretch of the layers over `tokens` [B, n], the columns up to `end`.

        The hidden state [B, n, d] behind the stretch, or the logits [B, V] of the last column.
        """
        ...

    def project(self, state: State, projection: Projection, end: int) -> None:
        """Store what the projection says as the keys and values of the column before `end`."""
        ...


class SlotRunner:
    """Runs a shadow whose attention goes through slots.

    `places`: where its steps are entered and left, 0 and the one behind the last layer among them;
    none where every step runs to its end.
    """

    gathers = True
    fixed = False
    records = False

    def __init__(
        self, model: Any, shapes: Mapping[int, SlotShape], places: Collection[int] = ()
    ) -> None:
        self.model = self.decoder = model
        self.shapes = shapes
        self.places = frozenset(places)
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
        return all(slot.size >= state.held for slot in state.cache.values())

    def walk(self, state: State, stretch: Stretch, tokens: Tensor, end: int) -> Tensor:
        run = _columns(state, end, tokens.shape[1])
        try:
            with guided(stretch):
                return forward(self.model, SlotCache(state.cache, run), run, tokens)
        except Left as left:
            return left.hidden

    def project(self, state: State, projection: Projection, end: int) -> None:
        run = _columns(state, end, 1)
        run.storing = True
        try:
            with guided(projection):
                forward(self.model, SlotCache(state.cache, run), run, _no_tokens(state))
        except Left:
            pass

    def step(self, slots: Mapping[int, Slot], pads: Tensor, at: Tensor, tokens: Tensor) -> Tensor:
        """A decode step as a function of tensors alone, so that it can be compiled."""
        run = Pass(pads, padded=True, queries=1, at=at)
        return forward(self.decoder, SlotCache(slots, run), run, tokens[:, None])


class PlainRunner:
    """Runs a planned model with transformers' own cache and attention, whatever they do."""

    gathers = True
    fixed = False
    records = False

    def __init__(self, model: Any, anatomy: Anatomy) -> None:
        self.model = model
        self._token_bytes = anatomy.kv_bytes_per_token
        self._indices = cache_indices(model, anatomy)

    def new_cache(self, batch: int, capacity: int) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    def cache_bytes(self, batch: int, capacity: int) -> int:
        return batch * capacity * self._token_bytes

    def prefill(self, state: State, tokens: Tensor) -> Tensor:
        return self._run(state, state.cache, tokens, state.length + tokens.shape[1])

    def decode(self, state: State, tokens: Tensor) -> Tensor:
        return self.prefill(state, tokens[:, None])

    def can_rewind(self, state: State) -> bool:
        return False

    def walk(self, state: State, stretch: Stretch, tokens: Tensor, end: int) -> Tensor:
        layers = range(stretch.first, stretch.last)
        cache = self._part(state.cache, layers, end - tokens.shape[1])
        try:
            with guided(stretch):
                return self._run(state, cache, tokens, end)
        except Left as left:
            return left.hidden

    def project(self, state: State, projection: Projection, end: int) -> None:
        layers = range(projection.first, projection.layers)
        cache = self._part(state.cache, layers, end - 1)
        cache.update = _storing(cache.update)
        try:
            with guided(projection):
                self._run(state, cache, _no_tokens(state), end)
        except Left:
            pass

    def _run(self, state: State, cache: Any, tokens: Tensor, end: int) -> Tensor:
        columns = torch.arange(end, device=state.pads.device)
        real = columns >= state.pads[:, None]
        positions = (columns - state.pads[:, None]).clamp(min=0)
        output = self.model(
            input_ids=tokens,
            attention_mask=real.long(),
            position_ids=positions[:, end - tokens.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            **last_only(self.model, tokens.shape[1], tokens.device),
        )
        return output.logits[:, -1]

    def _part(self, cache: Any, layers: range, start: int) -> Any:
        """The cache as a stretch of layers sees it that goes on at column `start`.

        Masks are made by the length of the first entry, so layers that have come further, or not as
        far, are hidden behind one that is as long, of which no number is read.
        """
        own = {index for at, index in self._indices.items() if at in layers}
        ended = copy.copy(cache.layers[0])
        ended.keys, ended.values = (
            held[:, :, :1].expand(-1, -1, start, -1) for held in (ended.keys, ended.values)
        )
        if ended.is_sliding:  # such an entry counts its columns beside what it holds
            ended.cumulative_length = start
        part = copy.copy(cache)
        part.layers = [each if at in own else ended for at, each in enumerate(cache.layers)]
        return part


def _storing(update: Any) -> Any:
    """A cache's `update` that stores and asks for nothing more."""

    def stored(*args: Any, **kwargs: Any) -> Any:
        update(*args, **kwargs)
        raise Stored

    return stored


def _columns(state: State, end: int, queries: int) -> Pass:
    """The pass over the `queries` columns before `end`."""
    if queries > 1:
        return Pass(state.pads, state.padded, queries, start=end - queries)
    at = torch.full((1,), end - 1, device=state.pads.device)
    return Pass(state.pads, padded=True, queries=1, at=at)


def _no_tokens(state: State) -> Tensor:
    """What is read where a hidden state takes the embedding's place."""
    return torch.zeros(state.batch, 1, dtype=torch.long, device=state.pads.device)


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
