"""One decode step of a model as a list of ATen operations, read off the model's own code.

The code is run once on tensors without storage and every operation it asks of torch is noted, with
its arguments and results.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skimp.engine import gates, shadow
from skimp.engine.program import naming
from skimp.engine.program.listing import NotLowered
from skimp.engine.slots import Pass, SlotCache, SlotShape
from skimp.methods.experts.modules import guided
from skimp.models.some_logits import keeps_logits

TOKENS, POSITIONS, HIDDEN = "tokens", "positions", "hidden"


@dataclass(frozen=True)
class Call:
    """One operation that was asked for; all tensors are without storage."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@dataclass(frozen=True)
class Captured:
    """A decode step: `inputs` are what changes from step to step, `weights` and buffers by path.

    A tensor of a call is known by its storage, which an input, a weight, or the first call that
    made it, brought in. A step that only stores keys and values has no `logits`.
    """

    inputs: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    calls: tuple[Call, ...]
    logits: Tensor | None

    @property
    def given(self) -> Mapping[str, Tensor]:
        """Inputs and weights."""
        return {**self.weights, **self.inputs}


class _Tape(TorchDispatchMode):
    """Notes operations. Numbers that code writes into a tensor and reads back stay numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._written: dict[int, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            key = storage_key(args[0])
            if key not in self._written:
                raise NotLowered("code that asks for a value")
            return self._written[key]
        result = func(*args, **(kwargs or {}))
        self.calls.append(Call(func, args, kwargs or {}, result))
        if func is aten.full.default:
            self._written[storage_key(result)] = args[1]
        return result


@dataclass(frozen=True)
class Shape:
    """The step that is to be captured: `queries` columns of each of `batch` sequences.

    At `places` it can be entered and left; place i is before layer i, and where there are any, 0
    and the one behind the last layer are among them. `projects`, the layers with an attention, are
    given where it is to do nothing but to store one hidden state's keys and values at each of them.
    """

    batch: int
    queries: int = 1
    places: frozenset[int] = frozenset()
    projects: frozenset[int] | None = None


# In inference mode torch hands on whole functions instead of the operations they are made of.
@torch.inference_mode(False)
@torch.no_grad()
def capture(model: Any, shapes: Mapping[int, SlotShape], step: Shape) -> Captured:
    """The decode step of a slot model: tokens, positions [B, Q] -> the last column's logits [B, V].

    Raises:
        NotLowered: the model's code asks for values while it is read.
    """
    meta = shadow.on_meta(model)
    weights = {**dict(meta.named_parameters()), **dict(meta.named_buffers())}
    columns = step.batch, step.queries
    inputs = {
        name: torch.zeros(columns, dtype=torch.long, device="meta") for name in (TOKENS, POSITIONS)
    }
    stored: list[Tensor] = []
    if step.projects is None:
        guide: Any = naming.Marking(step.places)
    else:
        width = meta.config.get_text_config().hidden_size
        inputs[HIDDEN] = next(meta.parameters()).new_zeros(*columns, width)
        guide = naming.Projecting(inputs[HIDDEN], step.projects)
    pads = torch.zeros(step.batch, dtype=torch.long, device="meta")
    run = Pass(pads, padded=True, queries=step.queries, start=0, storing=step.projects is not None)
    slots = {index: naming.NamedSlot(index, stored) for index in shapes}
    last = {"logits_to_keep": 1} if keeps_logits(meta) else {}
    with guided(naming.Naming()), gates.guided(guide), _Tape() as tape:
        output = meta(
            input_ids=inputs[TOKENS],
            position_ids=inputs[POSITIONS],
            past_key_values=SlotCache(slots, run),
            use_cache=True,
            **last,
        )
        logits = None if stored else output.logits[:, -1]
    calls = _needed(tape.calls, stored if logits is None else [logits])
    _check_marks(calls, {**weights, **inputs})
    return Captured(inputs, weights, tuple(calls), logits)


def _needed(calls: list[Call], results: list[Tensor]) -> list[Call]:
    """The calls that the results hang on, in order."""
    wanted = {storage_key(result) for result in results}
    kept = []
    for call in reversed(calls):
        if any(storage_key(tensor) in wanted for tensor in tensors(call.result)):
            kept.append(call)
            wanted.update(storage_key(t) for t in tensors((call.args, call.kwargs)))
    return kept[::-1]


def _check_marks(calls: list[Call], given: Mapping[str, Tensor]) -> None:
    """Raise NotLowered if a stretch reads what another than the first made.

    Else it could not be run without that one, from its hidden state alone.
    """
    made = dict.fromkeys((storage_key(tensor) for tensor in given.values()), 0)
    stretch = 0
    for call in calls:
        marks = call.target is torch.ops.skimp_program.mark.default
        if not marks and any(
            made.get(storage_key(t), 0) not in (0, stretch)
            for t in tensors((call.args, call.kwargs))
        ):
            raise NotLowered("values that pass by the residual stream from layer to layer")
        stretch += marks
        for tensor in tensors(call.result):
            made.setdefault(storage_key(tensor), stretch)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors among an operation's arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_key(tensor: Tensor) -> int:
    """The same for a tensor and its views."""
    return tensor.untyped_storage()._cdata
