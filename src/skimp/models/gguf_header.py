"""The header of a GGUF file: its metadata and the table of its tensors, read without any of them.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skimp.errors import LoadError

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LONGEST_KEPT = 512  # arrays beyond it are vocabularies, which transformers reads


@dataclass(frozen=True)
class TensorEntry:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]
    """Sizes, fastest-moving dimension first."""
    type: int
    """ggml type number, e.g. 0 for F32."""
    offset: int
    """Bytes from the start of the data."""

    @property
    def elements(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]
    """Scalars, strings and short arrays by key; long arrays are left out."""
    tensors: tuple[TensorEntry, ...]
    data_start: int
    """Byte at which tensor data begins."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model family, e.g. ``llama``."""
        return str(self.metadata.get("general.architecture", ""))

    def of_architecture(self, key: str) -> Any:
        """Return the metadata value ``<architecture>.<key>``, or None."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        LoadError: not a GGUF file, an unsupported version, or cut short.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LoadError(f"{path} is not a GGUF file; give a .gguf file or a model folder.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data, path)
            except (struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
                raise LoadError(
                    f"{path} has a damaged or truncated GGUF header; download it again."
                ) from error


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return values

    def text(self) -> str:
        (length,) = self.take("Q")
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise struct.error
        return self.data[start : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        raise KeyError(kind)

    def _array(self) -> Any:
        kind, count = self.take("IQ")
        if kind in _SCALARS and count > _LONGEST_KEPT:
            self.at += count * struct.calcsize(f"<{_SCALARS[kind]}")
            return None
        if count > len(self.data):  # every element takes a byte at least
            raise struct.error
        if count <= _LONGEST_KEPT:
            return [self.value(kind) for _ in range(count)]
        for _ in range(count):
            if kind == _STRING:
                (length,) = self.take("Q")
                self.at += length
            else:
                self.value(kind)
        return None


def _parse(data: mmap.mmap, path: Path) -> Header:
    cursor = _Cursor(data)
    cursor.take("I")
    version, tensors, entries = cursor.take("IQQ")
    if version not in (2, 3):
        raise LoadError(f"{path} is GGUF version {version}; only versions 2 and 3 can be read.")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.text()
        value = cursor.value(cursor.take("I")[0])
        if value is not None:
            metadata[key] = value
    table = tuple(_entry(cursor) for _ in range(tensors))
    alignment = metadata.get("general.alignment", 32)
    return Header(metadata, table, -(-cursor.at // alignment) * alignment)


def _entry(cursor: _Cursor) -> TensorEntry:
    name = cursor.text()
    (dimensions,) = cursor.take("I")
    if dimensions > 8:
        raise struct.error
    shape = cursor.take(f"{dimensions}Q")
    kind, offset = cursor.take("IQ")
    return TensorEntry(name, shape, kind, offset)


def floats(path: Path, header: Header, tensor: TensorEntry) -> tuple[float, ...]:
    """Return the values of a float32 tensor.

    Raises:
        LoadError: the tensor is stored in another type.
    """
    if tensor.type != 0:
        raise LoadError(f"{path} stores {tensor.name} in ggml type {tensor.type}, not float32.")
    with path.open("rb") as file:
        file.seek(header.data_start + tensor.offset)
        return struct.unpack(f"<{tensor.elements}f", file.read(4 * tensor.elements))
