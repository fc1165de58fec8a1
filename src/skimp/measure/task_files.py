"""Local task YAMLs: found, checked and made independent of the working directory.

lm_eval is imported late, inside functions: it is an optional extra.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skimp.errors import EvaluationError

Config = dict[str, Any]
INDEX_KEYS = ("tag", "group", "task_list")  # for finding a task, not part of what it is
FILE_FORMATS = ("json", "csv", "text", "parquet", "arrow")


@dataclass(frozen=True)
class Folder:
    """The tasks below one place: configurations of tasks and groups by name, and tags."""

    place: Path
    tasks: dict[str, Config] = field(default_factory=dict)
    groups: dict[str, Config] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.tasks, *self.groups, *self.tags]

    def members(self, name: str) -> Iterator[str | Config]:
        """Configurations that `name` (task, tag or group) stands for; bare names lie elsewhere."""
        if name in self.tasks:
            yield self.tasks[name]
        elif name in self.tags:
            yield from (self.tasks[task] for task in self.tags[name])
        elif name in self.groups:
            group = self.groups[name]
            for member in group["task"] if isinstance(group["task"], list) else [group["task"]]:
                yield from self._member(member)
        else:
            yield name

    def _member(self, member: str | Config) -> Iterator[str | Config]:
        if isinstance(member, str):
            yield from self.members(member)
            return
        for found in self.members(member.get("task") or member["group"]):
            changes = {key: value for key, value in member.items() if key not in ("task", "group")}
            if isinstance(found, dict):
                yield {**found, **changes}
            else:  # one of the harness's own: only its group knows how to merge changes into it
                yield {"group": found, "task": [member]}


def read_place(place: Path) -> Folder:
    """Read a folder's YAMLs (all below it), or the one file `place`.

    Raises:
        EvaluationError: a file is not valid YAML, two tasks share a name, or there is no task.
    """
    folder = Folder(place)
    alone = not place.is_dir()
    for path in [place] if alone else sorted(place.rglob("*.y*ml")):
        config = _read_yaml(path)
        if "group" in config and isinstance(config.get("task"), list):
            folder.groups[config["group"]] = config
        elif isinstance(name := config.get("task"), str):
            if name in folder.tasks:
                raise EvaluationError(f"{path}: task {name!r} is defined twice below {place}.")
            folder.tasks[name] = {k: v for k, v in config.items() if k not in INDEX_KEYS}
            tags = config.get("tag") or []
            for tag in [tags] if isinstance(tags, str) else tags:
                folder.tags.setdefault(tag, []).append(name)
        elif alone:
            raise EvaluationError(f"{path}: it has no `task:` field to name the task.")
    if not folder.tasks and not folder.groups:
        raise EvaluationError(f"{place}: there is no task YAML (with a `task:` field) in it.")
    return folder


def _read_yaml(path: Path) -> Config:
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config = load_yaml(path, resolve_func=True)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise EvaluationError(f"{path}: not valid YAML{line}: {problem}.") from error
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise EvaluationError(f"{path}: cannot be read: {first_line(error)}.") from error
    return _anchored(config, path)


def _anchored(config: Config, path: Path) -> Config:
    """`config` with the files it names made absolute, relative to the folder holding it."""
    found = {**config, "metadata": {**_metadata(config), "config_source": str(path)}}
    kwargs = dict(config.get("dataset_kwargs") or {})
    for key in ("data_files", "data_dir"):
        if key in kwargs:
            kwargs[key] = _absolute(kwargs[key], path.parent)
    if kwargs:
        found["dataset_kwargs"] = kwargs
    dataset = config.get("dataset_path")
    if isinstance(dataset, str) and (path.parent / dataset).is_dir():
        found["dataset_path"] = str(path.parent / dataset)
    return found


def _metadata(config: Config) -> Config:
    found = config.get("metadata")
    return dict(found) if isinstance(found, Mapping) else {}


def _absolute(files: Any, folder: Path) -> Any:
    if isinstance(files, Mapping):
        return {split: _absolute(value, folder) for split, value in files.items()}
    if isinstance(files, (list, tuple)):
        return [_absolute(value, folder) for value in files]
    if not isinstance(files, str) or "://" in files:
        return files
    beside = (folder / files).resolve()
    # Where lm-eval itself looks, and where a file may lie that is not beside the YAML.
    here = Path(files).expanduser().absolute()
    return str(here if not _matches(beside) and _matches(here) else beside)


def _matches(path: Path) -> list[str]:
    if path.exists():
        return [str(path)]
    root = Path(path.anchor)
    return sorted(map(str, root.glob(str(path.relative_to(root))))) if "*" in str(path) else []


def check_data(config: Config) -> None:
    """Raise EvaluationError unless the task's local data files are there and well-formed."""
    kwargs = config.get("dataset_kwargs") or {}
    if config.get("dataset_path") not in FILE_FORMATS or "data_files" not in kwargs:
        return
    for name in _flat(kwargs["data_files"]):
        if "://" in name:
            continue
        paths = _matches(Path(name))
        if not paths:
            raise EvaluationError(f"task {config['task']}: its data file {name} does not exist.")
        for path in paths if config["dataset_path"] == "json" else ():
            _check_json(config["task"], Path(path), kwargs.get("field"))


def _flat(files: Any) -> Iterator[str]:
    if isinstance(files, str):
        yield files
    else:
        for value in files.values() if isinstance(files, Mapping) else files:
            yield from _flat(value)


def _check_json(task: str, path: Path, nested: str | None) -> None:
    if path.suffix not in (".json", ".jsonl"):
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"task {task}: its data file {path} cannot be read as UTF-8 text: {first_line(error)}."
        ) from error
    if not text.strip():
        raise EvaluationError(f"task {task}: its data file {path} is empty; give it items.")
    if nested or text.lstrip().startswith("["):
        _check_document(task, path, text)
        return
    # Not splitlines: JSON strings may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            _check_document(task, path, line, number)


def _check_document(task: str, path: Path, text: str, line: int | None = None) -> None:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        at = line or error.lineno
        raise EvaluationError(
            f"task {task}: line {at} of its data file {path} is not valid JSON: {error.msg}."
        ) from error
    if line and not isinstance(found, dict):
        raise EvaluationError(
            f"task {task}: line {line} of its data file {path} must be a JSON object."
        )


def first_line(error: BaseException) -> str:
    """An exception's first line, without its full stop, fit for the middle of a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
