"""What is held in memory, and whether a workload will fit: tensors counted where they are.

A process's resident size says little here: allocators keep what was freed, and in a paired run the
dense weights stay alive beside the planned model. So tensors themselves are counted.
"""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from skimp.errors import WorkloadError
from skimp.measure import cost
from skimp.models.anatomy import Anatomy
from skimp.models.placement import available_bytes, largest
from skimp.workload import Workload


def resident_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers that a model reaches, each once (tied weights too)."""
    return _count((*model.parameters(), *model.buffers()))


def cache_bytes(cache: Any) -> int:
    """Bytes of the memory that a KV cache keeps alive.

    Takes any cache object or nesting of them. Whole storages count: a window cut as a view of a
    longer tensor holds all of it. Counters and other tensors of at most one dimension do not.
    """
    storages = [t.untyped_storage() for t in _tensors(cache, set()) if t.dim() > 1]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def check_workload(anatomy: Anatomy, workload: Workload, device: torch.device) -> None:
    """Raise WorkloadError if the model has too short a context or the machine too little memory."""
    length = workload.prompt + workload.new
    if anatomy.context_length is not None and length > anatomy.context_length:
        raise WorkloadError(
            f"workload {workload}: a prompt of {workload.prompt} and {workload.new} new tokens are "
            f"more than the model's context length of {anatomy.context_length}; shorten either."
        )
    free = available_bytes(device)
    need = cost.run_bytes(anatomy, workload)
    if need > free:
        raise WorkloadError(
            f"workload {workload}: it needs about {_gib(need)} beside the weights and {_gib(free)} "
            f"are free on {device.type}; {_what_fits(anatomy, workload, free)}."
        )


def _what_fits(anatomy: Anatomy, workload: Workload, free: int) -> str:
    def fits(prompt: int, batch: int) -> bool:
        return cost.run_bytes(anatomy, Workload(prompt, workload.new, batch)) <= free

    batch = largest(workload.batch, lambda value: fits(workload.prompt, value))
    if batch:
        return f"{Workload(workload.prompt, workload.new, batch)} would fit"
    prompt = largest(workload.prompt, lambda value: fits(value, 1))
    if prompt:
        return f"{Workload(prompt, workload.new, 1)} would fit"
    return "no shorter prompt would fit either, so use a smaller model or a shorter answer"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


class TensorMeter(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it that are alive, and their peak.

    On a GPU the allocator's own count is taken, which sees the scratch space of kernels too; on a
    CPU that space is missed. `peak` is what came on top of what was there on entering.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._live: dict[int, int] = {}
        self._peak = 0
        self._base = 0

    def __enter__(self) -> "TensorMeter":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base = torch.cuda.memory_allocated(self._device)
        else:
            super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self._device) - self._base
        else:
            super().__exit__(*error)

    @property
    def peak(self) -> int:
        return self._peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {t.untyped_storage()._cdata for t in _given(args, kwargs)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage(), given)
        return out

    def _watch(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key in self._live or key in given:  # a view or an in-place result
            return
        self._live[key] = storage.nbytes()
        weakref.finalize(storage, self._live.pop, key, None)
        self._peak = max(self._peak, sum(self._live.values()))


def _given(args: tuple, kwargs: dict[str, Any] | None) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor))


def _count(tensors: Iterable[Tensor]) -> int:
    seen = {}
    for tensor in tensors:
        for plain in _plain(tensor):
            key = (plain.untyped_storage()._cdata, plain.storage_offset(), plain.numel())
            seen[key] = plain.numel() * plain.element_size()
    return sum(seen.values())


def _plain(tensor: Any) -> Iterator[Tensor]:
    """The tensors inside a tensor subclass (quantized weights), or the tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _plain(getattr(tensor, name))


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield from _plain(value)
    elif id(value) not in seen and not isinstance(value, nn.Module | type | str):
        seen.add(id(value))
        children: Iterable[Any] = ()
        if isinstance(value, dict):
            children = value.values()
        elif isinstance(value, list | tuple):
            children = value
        elif hasattr(value, "__dict__"):
            children = vars(value).values()
        for child in children:
            yield from _tensors(child, seen)
