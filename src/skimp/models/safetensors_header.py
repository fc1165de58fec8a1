"""The header of a safetensors file: which tensors it holds, and whether the file is whole.

Layout: https://huggingface.co/docs/safetensors, eight bytes of length, a JSON table, the data.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from skimp.errors import LoadError

_LONGEST = 100_000_000  # the format's own limit
_POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """A tensor in a file: its number format as the file calls it (BF16, F32 …), its shape, and the
    byte of the file that it begins at."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read(path: Path) -> dict[str, Stored]:
    """Return what tensors the file holds, without reading any data.

    Raises:
        LoadError: the file is no safetensors file, is truncated, or is a Git LFS pointer.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if _POINTER.startswith(start) and start:
            raise LoadError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`.")
        if len(start) < 8 or (length <= _LONGEST and 8 + length > size):
            raise LoadError(f"{path} is truncated in its header; download it again.")
        text = file.read(length) if length <= _LONGEST else b""
    try:
        table = json.loads(text)
        table.pop("__metadata__", None)
        found = {
            name: Stored(
                str(entry.get("dtype")),
                tuple(entry["shape"]),
                path,
                8 + length + entry["data_offsets"][0],
            )
            for name, entry in table.items()
        }
        end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise LoadError(f"{path} is not a safetensors file; its header cannot be read.") from None
    if 8 + length + end != size:
        raise LoadError(
            f"{path} is truncated or damaged ({size} bytes instead of {8 + length + end}); "
            "download it again."
        )
    return found
