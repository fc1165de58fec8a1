"""Random weights at a true shape, made fast and straight in the wanted dtype.

Drawing billions of normals takes minutes on a few cores. One block of a prime number of normals
is drawn instead, and every weight matrix reads it cyclically from an offset of its own. The prime
period keeps rows of a matrix distinct: two rows start at the same place in the block only if they
lie a multiple of the period apart, which no matrix here is tall enough for.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from skimp.models.checks import INDEX
from skimp.progress import SILENT, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PERIOD = 19_999_999
"""Normals in the block; prime, and no near-multiple of common matrix widths."""

SHARD = 2_000_000_000
"""Bytes after which a shard that is written is closed."""

SMALLEST = 1e-3
"""Least magnitude in the block, so that no scaled weight underflows to zero in float16."""


def count(config: PreTrainedConfig) -> int:
    """Return the parameters of a model with this config, tied weights counted once."""
    return sum(parameter.numel() for parameter in _meta(config, torch.float32).parameters())


def scratch_bytes(dtype: torch.dtype) -> int:
    """Return the bytes that :func:`build` needs beside the model: the block and scaled copies."""
    return PERIOD * (4 + 4 * dtype.itemsize)


def build(
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    progress: Progress = SILENT,
) -> PreTrainedModel:
    """Return a model with random weights; peak memory is the model plus :func:`scratch_bytes`.

    Matrices are normal with standard deviation 1/sqrt(fan-in), which keeps the variance of what
    passes through a projection and so keeps activations finite at any depth. Norms, biases and
    buffers (rotary frequencies) are what the model class initialises them to. Weights depend on
    seed and parameter name only: a model cut to N layers equals the first N of the whole one, and
    other dtypes or devices give the same values up to rounding, with the same signs.

    Args:
        config: shape of the model.
        dtype: of every parameter, from the first byte.
        device: where parameters are made.
        seed: of the block of normals and the offsets.
        progress: told once per parameter.
    """
    model = _meta(config, dtype)
    normals = _Normals(seed, dtype, device)
    _materialise(model, device)
    drawn = [(name, weight) for name, weight in model.named_parameters() if weight.ndim >= 2]
    with progress.task("Drawing random weights", len(drawn)) as step, torch.no_grad():
        for name, weight in drawn:
            normals.fill(weight, name)
            step()
    _initialise(model)
    return model


def write(
    config: PreTrainedConfig,
    folder: Path,
    *,
    dtype: torch.dtype,
    seed: int = 0,
    shard_bytes: int = SHARD,
    progress: Progress = SILENT,
) -> None:
    """Write the model that :func:`build` makes into a folder, with one shard in memory at most.

    Args:
        config: shape of the model.
        folder: gains config.json, shards and their index; made if it is not there.
        dtype: of every parameter.
        seed: of the block of normals and the offsets.
        shard_bytes: a shard is closed when it holds so much.
        progress: told once per tensor.
    """
    model, normals = skeleton(config, dtype), _Normals(seed, dtype, torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    shards = _Shards(folder, shard_bytes)
    seen: set[int] = set()
    state = model.state_dict(keep_vars=True)
    with progress.task("Writing random weights", len(state)) as step, torch.no_grad():
        for name, tensor in state.items():
            if id(tensor) not in seen:  # tied weights are stored once
                made = torch.empty(tensor.shape, dtype=dtype) if tensor.is_meta else tensor.detach()
                if tensor.is_meta:
                    normals.fill(made, name)
                shards.add(name, made)
            seen.add(id(tensor))
            step()
    shards.close()
    model.config.save_pretrained(folder)


def skeleton(
    config: PreTrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return a model whose matrices are on the meta device, all else as the model class starts."""
    model = _meta(config, dtype, trust_remote_code)
    _materialise(model, torch.device("cpu"), matrices=False)
    _initialise(model)
    return model


class _Shards:
    """Safetensors files of about `size` bytes each, and the index that says what is in which."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._places: dict[str, str] = {}
        self._open: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._open[name] = tensor
        if sum(each.nbytes for each in self._open.values()) >= self._size:
            self._flush()

    def close(self) -> None:
        if self._open:
            self._flush()
        index = {"metadata": {}, "weight_map": self._places}
        (self._folder / INDEX).write_text(json.dumps(index))

    def _flush(self) -> None:
        from safetensors.torch import save_file

        self._count += 1
        file = f"model-{self._count:05d}.safetensors"
        save_file(self._open, self._folder / file, metadata={"format": "pt"})
        self._places |= dict.fromkeys(self._open, file)
        self._open = {}


def _meta(
    config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return cast("PreTrainedModel", model)


def _initialise(model: PreTrainedModel) -> None:
    """Give all but the matrices the values that the model class starts them with."""
    for weight in model.parameters():
        if weight.ndim >= 2:
            # transformers' initialisers leave alone what bears this mark
            setattr(weight, "_is_hf_initialized", True)  # noqa: B010 (no such typed attribute)
    for module in model.modules():
        module._is_hf_initialized = False  # type: ignore[assignment]
    model.initialize_weights()


def _materialise(model: nn.Module, device: torch.device, *, matrices: bool = True) -> None:
    """Give every meta tensor memory: tied ones once (`Module.to_empty` would untie them).

    Without `matrices` those stay on the meta device.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None or (weight.ndim >= 2 and not matrices):
                continue
            if id(weight) not in made:
                # Matrices are drawn next; zeros stand for vectors that no initialiser knows.
                allocate = torch.empty if weight.ndim >= 2 else torch.zeros
                tensor = allocate(weight.shape, dtype=weight.dtype, device=device)
                made[id(weight)] = nn.Parameter(tensor, requires_grad=False)
            module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros_like(buffer, device=device)


class _Normals:
    """The block of normals of one seed, and its scaled copies in the wanted dtype."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._seed, self._dtype, self._device = seed, dtype, device
        generator = torch.Generator().manual_seed(seed)  # on the CPU: devices draw differently
        block = torch.randn(PERIOD, generator=generator)
        self._block = torch.copysign(block.abs().clamp_(min=SMALLEST), block)
        self._scaled: dict[int, torch.Tensor] = {}

    def fill(self, weight: torch.Tensor, name: str) -> None:
        """Write normals into `weight` (..., fan-in), from the offset that belongs to `name`."""
        block = self._block_for(weight.shape[-1])
        flat = weight.view(-1)
        place = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        offset, start = int.from_bytes(place[:8], "big") % PERIOD, 0
        while start < len(flat):
            length = min(len(flat) - start, PERIOD - offset)
            flat[start : start + length].copy_(block[offset : offset + length])
            start, offset = start + length, 0

    def _block_for(self, fan_in: int) -> torch.Tensor:
        if fan_in not in self._scaled:
            scaled = (self._block * fan_in**-0.5).to(self._dtype)
            self._scaled[fan_in] = scaled.to(self._device)
        return self._scaled[fan_in]
