"""Finished results on disk, so that work that was broken off goes on where it stopped.

A result is filed under a hash of all that it hangs on: the model's weights, what was asked, the
items, the plan, the seed, the code and the libraries that compute it. Nothing is ever taken up that
would be measured differently now, and what a table is called or set beside may change freely.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

import skimp
from skimp.errors import SkimpError
from skimp.models.cache import root, write_json
from skimp.models.reading import fingerprint

FORMAT = 2
_LIBRARIES = ("torch", "transformers", "tokenizers", "rouge_score", "lm_eval", "scikit-learn")
_ABOVE = ("cli", "report", "export", "serve")  # rooms that show or use results and compute none
_SAMPLE = 4096  # numbers of each weight that its model is known by


class Result(Protocol):
    """What can be filed."""

    def to_dict(self) -> dict[str, Any]: ...


_Found = TypeVar("_Found", bound=Result)


def default_folder(kind: str) -> Path:
    """Where results of a kind, such as `recipes`, are kept: in skimp's cache folder."""
    return root() / kind


class Shelf(Generic[_Found]):
    """A folder of finished results; `fresh` takes none up but those it has filed itself.

    `read` makes a result of what its `to_dict` gave, and raises a SkimpError, ValueError, KeyError,
    TypeError or AttributeError for anything else.
    """

    def __init__(self, folder: Path, read: Callable[[Any], _Found], *, fresh: bool = False) -> None:
        self.folder = folder
        self._read = read
        self._fresh = fresh
        self._filed: set[Path] = set()

    def take(self, key: Mapping[str, Any]) -> _Found | None:
        """The result filed under `key`, or None if there is no sound one."""
        path = self._path(key)
        if self._fresh and path not in self._filed:
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["skimp_result"] != FORMAT or data["key"] != _plain(key):
                return None
            return self._read(data["result"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SkimpError):
            return None  # measured again, and then written over

    def put(self, key: Mapping[str, Any], result: _Found) -> None:
        """File a result in one step; SkimpError where the folder cannot be written."""
        content = {"skimp_result": FORMAT, "key": _plain(key), "result": result.to_dict()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._path(key), content)
            self._filed.add(self._path(key))
        except OSError as error:
            raise SkimpError(
                f"--state: {self.folder} cannot be written ({error.strerror or error})."
            ) from None

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(_plain(key), sort_keys=True)
        return self.folder / f"{sha256(text.encode()).hexdigest()[:32]}.json"


def identity(model: nn.Module) -> dict[str, str]:
    """The very weights of a model, by an even sample of each, their format and their device."""
    weight = next(model.parameters())
    digest = sha256()
    for name, each in sorted(model.named_parameters()):
        flat = each.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].contiguous().cpu()
        digest.update(name.encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return {
        "fingerprint": fingerprint(model),
        "weights": digest.hexdigest()[:32],
        "dtype": str(weight.dtype),
        "device": weight.device.type,
    }


def _plain(key: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(key))


@cache
def surroundings() -> dict[str, str]:
    """The code and libraries that compute results."""
    return {"skimp": _code(), **{name: _version(name) for name in _LIBRARIES}}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _code() -> str:
    folder = Path(skimp.__file__).parent
    digest = sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in (".py", ".c", ".h", ".jsonl") and name.parts[0] not in _ABOVE:
            digest.update(str(name).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]
