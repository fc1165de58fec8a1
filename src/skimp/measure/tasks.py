"""From what a user calls a task to the harness's task objects, with their data at hand.

A specification is a comma list of: a name the harness knows (task, group or tag); a folder of task
YAMLs (all of them); one YAML file; or `FOLDER:NAME` for one task, group or tag of a folder.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skimp.errors import EvaluationError
from skimp.measure.task_files import Config, Folder, check_data, first_line, read_place

MISSING = (
    "lm-evaluation-harness is not installed, and tasks are scored with it; "
    'install it with: pip install "skimp[eval]".'
)


def load_tasks(
    specs: str | Sequence[str], seed: int = 0, shots: int | None = None
) -> dict[str, Any]:
    """The harness's task objects by name, in the order asked for, few-shot examples seeded.

    `shots`: examples before each item, in place of the task's own number.

    Raises:
        EvaluationError: the harness is missing; nothing was asked for; a name is unknown; a YAML
            or data file is missing or malformed; a task's data cannot be had or is empty.
    """
    require_harness()
    parts = split_specs(specs)
    places = {part: place for part in parts if (place := _place(part)) is not None}
    folders = {place: read_place(place) for place in dict.fromkeys(places.values())}
    found: dict[str, Any] = {}
    origins: dict[str, Path | None] = {}
    for part in parts:
        place = places.get(part) or _holder(part, folders)
        for config in _meant(part, place, folders):
            for name, task in _build(config, folders, seed).items():
                found.setdefault(name, task)
                if _apart(origins.setdefault(name, place), place):
                    raise _ambiguous(name, origins[name], place)
    if shots is not None:
        for task in found.values():
            task.set_config(key="num_fewshot", value=shots)
    return found


def require_harness() -> None:
    """Raise EvaluationError with the remedy unless lm_eval can be imported."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise EvaluationError(MISSING) from error


def split_specs(specs: str | Sequence[str]) -> list[str]:
    """`"a,b"` or `["a", "b,c"]` as a list of single specifications without repeats."""
    whole = [specs] if isinstance(specs, str) else list(specs)
    parts = [part.strip() for spec in whole for part in spec.split(",")]
    parts = list(dict.fromkeys(part for part in parts if part))
    if not parts:
        raise EvaluationError("tasks: none given; name a task, a folder of task YAMLs or a file.")
    return parts


def _place(part: str) -> Path | None:
    """The folder or file that a specification names, or None for a bare task name."""
    for text in (part, part.rpartition(":")[0]):
        path = Path(text).expanduser()
        if text and (path.is_dir() or (path.is_file() and path.suffix in (".yaml", ".yml"))):
            return path
    text = part.rpartition(":")[0] or part
    if "/" in text or text.endswith((".yaml", ".yml")):
        raise EvaluationError(f"tasks: there is no folder or YAML file {text}.")
    return None


def _holder(part: str, folders: Mapping[Path, Folder]) -> Path | None:
    """The first of the folders in use that has a task called `part`."""
    return next((place for place, folder in folders.items() if part in folder.names), None)


def _meant(part: str, place: Path | None, folders: Mapping[Path, Folder]) -> list[str | Config]:
    if place is None:
        return [part]
    folder = folders[place]
    if Path(part).expanduser() == place:
        return list(folder.tasks.values()) or [m for g in folder.groups for m in folder.members(g)]
    name = part.rpartition(":")[2]
    if name not in folder.names:
        raise EvaluationError(f"tasks: {place} has no task {name!r}{_near(name, folder.names)}.")
    return list(folder.members(name))


def _apart(one: Path | None, other: Path | None) -> bool:
    """Whether two places are neither the same nor one inside the other."""
    if one is None or other is None:
        return one is not other
    one, other = one.resolve(), other.resolve()
    return not (one.is_relative_to(other) or other.is_relative_to(one))


def _ambiguous(name: str, one: Path | None, other: Path | None) -> EvaluationError:
    places = " and ".join("the harness" if place is None else str(place) for place in (one, other))
    return EvaluationError(
        f"tasks: {places} both have a task {name!r}, and results go by name; score them apart."
    )


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}" if close else ""


def _build(config: str | Config, folders: Mapping[Path, Folder], seed: int) -> dict[str, Any]:
    """Build what a configuration, or a name of the harness's own, stands for."""
    name = config if isinstance(config, str) else config.get("group") or config["task"]
    if isinstance(config, dict):
        check_data(config)
    with quiet(), seeded(seed):
        try:
            tasks = _manager_load(config, folders)
        except EvaluationError:
            raise
        except Exception as error:
            raise _unusable(name, config, error) from error
    for task in tasks.values():
        task.set_fewshot_seed(seed=seed)
    return tasks


def _manager_load(config: str | Config, folders: Mapping[Path, Folder]) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    if isinstance(config, dict):
        manager = TaskManager(include_defaults="group" in config)
        return manager.load([config])["tasks"]
    if path := _own_file(config):
        return TaskManager(include_defaults=False).load([str(path)])["tasks"]
    manager = TaskManager()
    if config not in manager.task_index:
        names = [
            *manager.all_tasks,
            *(name for folder in folders.values() for name in folder.names),
        ]
        raise EvaluationError(f"tasks: there is no task {config!r}{_near(config, names)}.")
    return manager.load([config])["tasks"]


def _own_file(name: str) -> Path | None:
    """The YAML of a harness task named like its file: indexing all 14 thousand takes a while."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(lm_eval.tasks.__file__).parent
    for path in sorted(root.rglob(f"{glob.escape(name)}.yaml")):
        with contextlib.suppress(Exception):
            config = load_yaml(path, resolve_func=False)
            if config.get("task") == name and "group" not in config:
                return path
    return None


def _unusable(name: str, config: str | Config, error: Exception) -> EvaluationError:
    where = name
    if isinstance(config, dict) and "metadata" in config:
        where = f"{name} ({config['metadata']['config_source']})"
    kind = type(error).__name__
    network = isinstance(error, (ConnectionError, FileNotFoundError)) or any(
        word in kind for word in ("Offline", "NotFound", "Connect", "Timeout", "Http", "HfHub")
    )
    if network:
        return EvaluationError(
            f"task {where}: its data is not on this machine and cannot be fetched "
            f"({first_line(error)}); fetch it once while online, or use local task YAMLs."
        )
    if isinstance(error, IndexError):
        return EvaluationError(f"task {where}: it has no items, or its first has no choices.")
    return EvaluationError(f"task {where}: it cannot be built: {kind}: {first_line(error)}.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness's and datasets' own bars off the terminal: skimp draws its own."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's and numpy's generators inside the block: tasks may shuffle their items."""
    import numpy as np

    python, state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(state)
