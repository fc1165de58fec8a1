"""Models larger than memory: the layers' weights stay in their safetensors files.

The files are mapped into memory, read-only, and parameters are views of that map. The system reads
its pages when they are used and forgets them when memory runs short, so on a CPU and in the file's
own number format nothing more is needed. Where weights must change on the way, to another number
format or onto a GPU, a :class:`FileWeight` stands in the parameter's place.

Every pass over the model reads all of it from disk, so whoever runs one should take a layer through
all data before the next (as `skimp.calibration.replay.Replay` does).
"""

from __future__ import annotations

import mmap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from skimp.errors import LoadError
from skimp.models import checks, folder, random_weights
from skimp.models.placement import require_memory
from skimp.models.reading import family_of
from skimp.models.safetensors_header import Stored

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FORMATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Number formats of safetensors files that weights can be computed with."""

_OTHERS = {
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

_CPU = torch.device("cpu")
_REMEDY = "free some memory; less than this cannot be had even by reading layers as they are used"
_aten = torch.ops.aten
# Views stay in the file, so that to look at a few numbers does not read the whole weight.
_VIEWS = {
    _aten.alias.default,
    _aten.detach.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.view.default,
}


def load_streamed(
    where: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    name: str | None = None,
) -> PreTrainedModel:
    """Return the model in a folder as :func:`skimp.models.folder.load_model` does, but streamed.

    Where nothing is converted, all weights are views of the files, which nobody can write to. Else
    embedding, norms, biases and head are held in memory, and the matrices of one layer at a time.

    Raises:
        LoadError: what `load_model` refuses, or weights in a format that cannot be computed with.
    """
    called = name or str(where)
    config = folder.read_config(where, called, trust_remote_code)
    checks.check_decoder(config, called)
    held = checks.weights(where)
    stored = _format(held, called)
    bare = random_weights.skeleton(config, dtype, trust_remote_code=trust_remote_code)
    size = footprint(bare, held)
    require_memory(called, size.restacked, _CPU, folder.SMALLER)
    require_memory(called, size.resident + size.layer, device, _REMEDY)
    model = _assemble(where, called, type(bare), config, held, stored)
    if device.type != "cpu" or dtype != stored:
        convert(model, bare, device)
    return model


def _assemble(
    where: Path,
    called: str,
    kind: type[PreTrainedModel],
    config: PreTrainedConfig,
    held: Mapping[str, Stored],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """The model of the weights in the files, as transformers puts it together."""
    from transformers import GenerationConfig

    load: Any = kind.from_pretrained  # its stub knows no loading info
    try:
        model, found = load(
            None,
            config=config,
            state_dict=mapped(held),
            dtype=dtype,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused, by name
            output_loading_info=True,
        )
        if (where / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(where)
    except Exception as error:
        raise LoadError(f"{called} cannot be loaded ({folder.reason(error)}).") from error
    folder.refuse_misfits(called, found)
    return model


def mapped(held: Mapping[str, Stored]) -> dict[str, Tensor]:
    """The tensors in safetensors files, as read-only views of the files.

    Maps that could be written to, as the safetensors library makes them, are charged to the memory
    that a system promises: it refuses one of a file larger than memory.
    """
    maps: dict[Path, mmap.mmap] = {}
    found: dict[str, Tensor] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for name, each in held.items():
            if each.file not in maps:
                with each.file.open("rb") as file:
                    maps[each.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            dtype = (FORMATS | _OTHERS).get(each.dtype)
            if dtype is None:
                raise LoadError(
                    f"{each.file} holds {name} as {each.dtype}, which cannot be read as it is used."
                )
            if not each.numel:
                found[name] = torch.empty(each.shape, dtype=dtype)
                continue
            flat = torch.frombuffer(
                maps[each.file], dtype=dtype, count=each.numel, offset=each.start
            )
            found[name] = flat.view(each.shape)
    return found


@dataclass(frozen=True)
class Footprint:
    """Bytes of a streamed model in memory.

    `resident` stay on its device, `layer` are those of its largest layer, there while that runs;
    `restacked` are made on the CPU while loading, since the file holds them in pieces.
    """

    resident: int
    layer: int
    restacked: int


def footprint(model: nn.Module, held: Mapping[str, Stored]) -> Footprint:
    """What a model takes streamed, its matrices on the meta device and its files holding `held`."""
    pieces = Counter(each.shape for each in held.values())
    layers: Counter[int] = Counter()
    streamed = restacked = 0
    for layer, _, _, weight in matrices(model):
        size = weight.nbytes
        layers[layer] += size
        streamed += size
        if pieces[tuple(weight.shape)]:
            pieces[tuple(weight.shape)] -= 1
        else:
            restacked += size
    whole = sum(weight.nbytes for weight in model.parameters())
    return Footprint(whole - streamed, max(layers.values(), default=0), restacked)


def matrices(model: nn.Module) -> Iterator[tuple[int, nn.Module, str, nn.Parameter]]:
    """The parameters of two dimensions and more in a model's layers: (layer, module, name, it)."""
    layers = model.get_submodule(family_of(model).layers)
    for index, layer in enumerate(layers.children()):
        for module in layer.modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.dim() > 1:
                    yield index, module, name, weight


class Window:
    """The matrices of one layer as they are computed with; the next layer's take their place."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._layer: int | None = None
        self._held: dict[Any, Tensor] = {}

    def bring(self, weight: FileWeight) -> Tensor:
        """The plain tensor that `weight` stands for."""
        if weight.layer != self._layer:
            self._held.clear()
            self._layer = weight.layer
        stored = weight.stored
        key = stored.data_ptr(), stored.shape, stored.stride()
        if key in self._held:
            return self._held[key]
        made = stored.to(self.device).to(self.dtype)
        if weight.whole:
            self._held[key] = made
        return made

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for each in self._held.values())


class FileWeight(Tensor):
    """A weight that lies in a file, in another number format or place than it is computed in.

    It has the dtype and device of its window, and whatever is computed with it brings it there.
    """

    stored: Tensor
    window: Window
    layer: int
    whole: bool

    # Operations are met below this level, and their results are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, stored: Tensor, window: Window, layer: int, *, whole: bool = True) -> FileWeight:
        make: Any = torch.Tensor._make_wrapper_subclass
        made = make(
            cls, stored.shape, strides=stored.stride(), dtype=window.dtype, device=window.device
        )
        made.stored, made.window, made.layer, made.whole = stored, window, layer, whole
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _VIEWS and isinstance(args[0], FileWeight):
            own, *others = args
            view = func(own.stored, *others, **(kwargs or {}))
            whole = own.whole and view.shape == own.shape
            return cls.of(view, own.window, own.layer, whole=whole)
        given: Any = tree_map_only(FileWeight, _bring, (args, kwargs or {}))
        return func(*given[0], **given[1])


def _bring(weight: FileWeight) -> Tensor:
    return weight.window.bring(weight)


def convert(model: nn.Module, like: PreTrainedModel, device: torch.device) -> None:
    """Let a model compute on `device` in the dtype of `like`; its layers' matrices stay in place.

    `like` is the same model, built in that dtype, but for its matrices: it has the buffers that are
    computed instead of stored, some of which depend on the dtype.
    """
    window = Window(like.dtype, device)
    made: dict[int, nn.Parameter] = {}
    for layer, _, _, weight in matrices(model):
        kept = FileWeight.of(weight.detach(), window, layer)
        made[id(weight)] = nn.Parameter(kept, requires_grad=False)
    for module, twin in zip(model.modules(), like.modules(), strict=True):
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in made:
                # Families that keep a weight in float32 whatever is asked for do so in both.
                plain = weight.detach().to(device, twin.get_parameter(name).dtype)
                made[id(weight)] = nn.Parameter(plain, requires_grad=False)
            module._parameters[name] = made[id(weight)]
        for name, buffer in module.named_buffers(recurse=False):
            computed = name in module._non_persistent_buffers_set
            module._buffers[name] = (twin.get_buffer(name) if computed else buffer).to(device)
    config: Any = model.config
    config.dtype = like.dtype


def _format(held: Mapping[str, Stored], called: str) -> torch.dtype:
    """The number format that most of the stored numbers have."""
    sizes: Counter[str] = Counter()
    for each in held.values():
        sizes[each.dtype] += each.numel
    name = sizes.most_common(1)[0][0]
    if name not in FORMATS:
        raise LoadError(
            f"{called} keeps its weights as {name}, which cannot be read as they are used; save "
            "them as BF16 first."
        )
    return FORMATS[name]
