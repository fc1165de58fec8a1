"""What a search has found so far, on disk: every step once, so that it can go on where it ended."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skimp.errors import SkimpError
from skimp.models.cache import write_json
from skimp.plan import Plan

_KEY = "search.json"


class State:
    """A folder of steps, each a JSON file, and of plans.

    Args:
        folder: made if it is not there.
        key: what the search is about; a folder of another one is refused.

    Raises:
        SkimpError: the folder holds something else.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / _KEY
        wanted = json.loads(json.dumps(key))
        if not known.exists():
            if any(folder.iterdir()):
                raise SkimpError(
                    f"--state: {folder} holds other files; name a new folder for the search."
                )
            write_json(known, wanted)
            return
        found = read_json(known)
        different = [name for name in wanted if found.get(name) != wanted[name]]
        if different:
            raise SkimpError(
                f"--state: {folder} is of a search with another {different[0]}; name another "
                "folder, or remove it to start anew."
            )

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, plain data; of an earlier run if that got so far."""
        path = self.folder / f"{name}.json"
        if path.exists():
            return read_json(path)["found"]
        found = make()
        write_json(path, {"found": found})
        return read_json(path)["found"]

    def plan(self, name: str) -> Path:
        """Where a plan of this name is kept."""
        return self.folder / f"{name}.yaml"

    def fitted(self, name: str, make: Callable[[], Plan]) -> Plan:
        """A fitted plan; of an earlier run if that got so far."""
        path = self.plan(name)
        if not path.exists():
            make().write(path)
        return Plan.read(path)


def read_json(path: Path) -> Any:
    """A JSON file of a search's folder.

    Raises:
        SkimpError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SkimpError(
            f"--state: {path} is missing or damaged; remove the folder to start anew."
        ) from None
