"""Where a model goes and in which number format: device, dtype, and whether it fits in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from skimp.errors import LoadError

_CGROUP = Path("/sys/fs/cgroup")
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "f32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
"""The names a dtype may be given by, beside ``auto``."""


def resolve_device(name: str) -> torch.device:
    """Return the device `name` stands for: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        LoadError: the name is unknown or this machine has no such device.
    """
    kind, _, index = name.partition(":")
    known = kind in ("cpu", "cuda", "mps") and (not index or (kind == "cuda" and index.isdecimal()))
    if not known or name.endswith(":"):
        raise LoadError(f"device {name!r} is unknown; use cpu, cuda, cuda:N or mps.")
    if kind == "cuda":
        return _cuda(name, int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise LoadError("device 'mps' is not available on this machine; use device cpu.")
    return torch.device(kind)


def _cuda(name: str, index: int) -> torch.device:
    if not torch.cuda.is_available():
        raise LoadError(
            f"device {name!r} is not available: torch {torch.__version__} finds no CUDA GPU; use "
            "device cpu or install a CUDA build of torch."
        )
    count = torch.cuda.device_count()
    if index >= count:
        raise LoadError(
            f"device {name!r} does not exist; this machine has cuda:0 to cuda:{count - 1}."
        )
    return torch.device("cuda", index)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """Return the dtype that ``auto`` stands for on `device`.

    bfloat16 halves the bytes that each decode step reads, so it is the choice wherever the hardware
    multiplies it: on GPUs (float16 on those too old for bfloat16) and on CPUs with AVX512_BF16 or
    AMX. Other CPUs emulate it slowly and get float32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if kind == "mps":
        return torch.bfloat16
    return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    # Older torch names the same facts by private functions.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `name` (``auto`` or a key of :data:`DTYPES`) means on `device`.

    Raises:
        LoadError: the name is unknown; the message lists the known ones.
    """
    if name == "auto":
        return default_dtype(device)
    if name not in DTYPES:
        raise LoadError(f"dtype {name!r} is unknown; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device` (mps shares the host's memory): what is free,
    within a container's limit if any."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch keeps what was let go of, and hands it out again.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return free
    return max(0, min(free, limit - used))


def largest(below: int, fits: Callable[[int], bool]) -> int:
    """The largest value in 1 … `below` that fits, 0 if none does."""
    low, high = 0, below
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def gigabytes(count: float) -> str:
    """Write `count` bytes as decimal gigabytes, e.g. ``13.5 GB``."""
    return f"{count / 1e9:.1f} GB"


def require_memory(what: str, needed: int, device: torch.device, remedy: str) -> None:
    """Refuse to allocate what does not fit, before the operating system kills the process.

    Args:
        what: the model, as the user named it.
        needed: bytes about to be allocated on `device`.
        device: where.
        remedy: what the user can do, as an imperative clause.

    Raises:
        LoadError: `needed` exceeds what is available.
    """
    free = available_bytes(device)
    if needed > free:
        raise LoadError(
            f"{what} needs {gigabytes(needed)} of memory on {device} but {gigabytes(free)} are "
            f"available; {remedy}."
        )
