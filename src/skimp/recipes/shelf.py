"""Finished results on disk, so that a run that was broken off goes on where it stopped.

A result is filed under a hash of all that it hangs on: the model's weights, the kind of experiment
and its settings, the items, the plan, the seed, the code and the libraries that compute it. Nothing
is ever taken up that would be measured differently now, and what a table is called or set beside
may change freely.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import skimp
from skimp.errors import RecipeError
from skimp.models.cache import root, write_json
from skimp.recipes.outcome import Outcome

FORMAT = 1
_LIBRARIES = ("torch", "transformers", "tokenizers", "rouge_score", "lm_eval", "scikit-learn")
_ABOVE = ("cli", "report")  # rooms that show results and compute none


def default_folder() -> Path:
    """`recipes` in skimp's cache folder."""
    return root() / "recipes"


class Shelf:
    """A folder of finished results; `fresh` takes none up but those it has filed itself."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.folder = folder
        self._fresh = fresh
        self._filed: set[Path] = set()

    def take(self, key: Mapping[str, Any]) -> Outcome | None:
        """The result filed under `key`, or None if there is no sound one."""
        path = self._path(key)
        if self._fresh and path not in self._filed:
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["skimp_recipe_result"] != FORMAT or data["key"] != _plain(key):
                return None
            return Outcome.from_dict(data["outcome"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # measured again, and then written over

    def put(self, key: Mapping[str, Any], outcome: Outcome) -> None:
        """File a result in one step; RecipeError where the folder cannot be written."""
        content = {"skimp_recipe_result": FORMAT, "key": _plain(key), "outcome": outcome.to_dict()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._path(key), content)
            self._filed.add(self._path(key))
        except OSError as error:
            raise RecipeError(
                f"--state: {self.folder} cannot be written ({error.strerror or error})."
            ) from None

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(_plain(key), sort_keys=True)
        return self.folder / f"{sha256(text.encode()).hexdigest()[:32]}.json"


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
