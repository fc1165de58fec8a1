"""What a model caches for a token, found by running its own code on tensors without storage."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skimp.engine import shadow
from skimp.engine.attention import Unsupported
from skimp.engine.slots import Entry, Pass, SlotCache, SlotShape
from skimp.models.anatomy import Anatomy
from skimp.models.carve import KEEP
from skimp.models.some_logits import last_only


@dataclass
class _Recorder:
    """Stands where a slot will be and notes what it would have to hold."""

    shape: SlotShape | None = None

    def attend(self, query: Tensor, entry: Entry, *options: Any) -> Tensor:
        keys, values = entry.keys, entry.values
        self.shape = SlotShape(keys.shape[1], keys.shape[3], values.shape[3])
        batch, heads, queries, _ = query.shape
        return query.new_empty(batch, queries, heads, values.shape[3])


class _Recorders(dict[int, _Recorder]):
    def __missing__(self, index: int) -> _Recorder:
        self[index] = _Recorder()
        return self[index]


def slot_shapes(model: nn.Module, anatomy: Anatomy) -> dict[int, SlotShape]:
    """The slots of a model whose attention goes through them (a planned shadow), by cache index.

    Raises:
        Unsupported: its attention does something that the slots do not.
    """
    try:
        recorders = _record(shadow.on_meta(model))
    except Unsupported:
        raise
    except Exception:  # code that asks for values, or for kernels that shapes alone do not satisfy
        recorders = _record(model)
    windows = _windows(model, anatomy)
    shapes = {}
    for index, recorder in sorted(recorders.items()):
        if recorder.shape is None:
            raise Unsupported("keys and values are stored but not attended to")
        shape = recorder.shape
        shapes[index] = SlotShape(shape.heads, shape.key, shape.value, windows.get(index))
    if len(shapes) != len(windows):
        raise Unsupported(f"{len(windows)} attentions keep {len(shapes)} caches")
    return shapes


@torch.inference_mode()
def _record(model: nn.Module) -> _Recorders:
    recorders = _Recorders()
    device = next(model.parameters()).device
    run = Pass(torch.zeros(1, dtype=torch.long, device=device), padded=False, queries=2, start=0)
    try:
        forward(model, SlotCache(recorders, run), run, torch.ones(1, 2, dtype=torch.long))
    except (AttributeError, TypeError) as error:  # it takes the keys for tensors
        raise Unsupported(f"its modelling code, which works on cached keys ({error})") from error
    return recorders


def _windows(model: nn.Module, anatomy: Anatomy) -> dict[int, int | None]:
    """Sliding windows by cache index."""
    indices = cache_indices(model, anatomy)
    return {index: anatomy.layers[at].attention.window for at, index in indices.items()}


def cache_indices(model: nn.Module, anatomy: Anatomy) -> dict[int, int]:
    """The cache index of every layer that keeps its attention."""
    path = anatomy.family.attention.modules[0]
    layers: Any = model.get_submodule(anatomy.family.layers)
    return {
        at: block.get_submodule(path).layer_idx
        for at, (block, layer) in enumerate(zip(layers, anatomy.layers, strict=True))
        if layer.attention.state == KEEP
    }


def forward(model: Any, cache: Any, run: Pass, tokens: Tensor) -> Tensor:
    """Logits [B, V] of the last of `tokens` [B, Q] of the pass."""
    device = run.pads.device
    first = run.at if run.start is None else run.start
    assert first is not None
    columns = torch.arange(run.queries, device=device) + first
    positions = (columns[None] - run.pads[:, None]).clamp(min=0)
    output = model(
        input_ids=tokens.to(device),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **last_only(model, run.queries, device),
    )
    return output.logits[:, -1]
