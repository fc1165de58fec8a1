"""Which engines there are: what runs each, what it reads, and how to get it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from skimp.errors import SkimpError

HOMES = {"llama": "SKIMP_PEERS_LLAMA", "openvino": "SKIMP_PEERS_OPENVINO"}
"""Environments of their own, and the variable that names each one's Python."""

_LLAMA = (
    "python3 -m venv llama && llama/bin/pip install llama-cpp-python==0.3.36 numpy, "
    "then --llama-python llama/bin/python"
)
_OPENVINO = (
    "python3 -m venv ov && ov/bin/pip install torch==2.13.0 && ov/bin/pip install "
    "'optimum-intel[openvino]==2.2.0' openvino==2026.4.1 torch==2.13.0 && "
    "ov/bin/pip uninstall -y torchvision, then --openvino-python ov/bin/python"
)


@dataclass(frozen=True)
class Kind:
    """A way to run a model.

    `module` runs it, in the environment `home` (None: this one), once `install` was done. `export`:
    the file it reads instead of the model itself. `weight_bits` and `kv_bits`: what a number takes
    in its matrices and in its KV cache. `option`: what its module is told besides. `argument`: what
    must follow the name after a colon, in words. `exact`: it computes what the dense model does, so
    its tokens should agree.
    """

    module: str
    install: str
    home: str | None = None
    export: str | None = None
    weight_bits: float = 16.0
    kv_bits: float = 16.0
    option: str = ""
    argument: str | None = None
    exact: bool = True


KINDS: Mapping[str, Kind] = {
    "transformers": Kind("bench.engines.eager", "pip install -e ."),
    "static": Kind("bench.engines.static", "pip install -e ."),
    "skimp": Kind("bench.engines.own", "pip install -e ., at a version that has skimp.engine"),
    "llama.cpp": Kind("bench.engines.llama", _LLAMA, "llama", "bf16"),
    # 32 weights of 8 bits share a scale of 16.
    "llama.cpp-q8": Kind("bench.engines.llama", _LLAMA, "llama", "q8_0", weight_bits=8.5),
    "openvino": Kind("bench.engines.ov", _OPENVINO, "openvino", "folder"),
    "openvino-int8": Kind("bench.engines.ov", _OPENVINO, "openvino", "folder", 8.0, 8.0, "int8"),
    "llm-drop": Kind(
        "bench.engines.llm_drop", "pip install -e .", argument="LAYERS or PLAN", exact=False
    ),
}
DEFAULT = "transformers,static,skimp,llama.cpp,llama.cpp-q8,openvino"


@dataclass(frozen=True)
class Entry:
    """One engine of a run, as it was asked for."""

    name: str
    kind: Kind
    argument: str
    python: str


def read(text: str, pythons: Mapping[str, str | None]) -> list[Entry]:
    """Read `transformers,skimp:plan.yaml,llm-drop:20-25`; the first is what others are held to.

    `pythons` names the interpreter of each home, or None for what its variable says.

    Raises:
        SkimpError: an unknown engine, one named twice, an argument missing, or fewer than one.
    """
    entries = [_entry(name, pythons) for name in _split(text)]
    names = [entry.name for entry in entries]
    if not names:
        raise SkimpError(f"--engines: name at least one of {', '.join(KINDS)}.")
    for name in names:
        if names.count(name) > 1:
            raise SkimpError(f"--engines: {name} is named twice.")
    return entries


def _split(text: str) -> list[str]:
    """Names between commas; what follows a comma and starts with a digit is a layer."""
    names: list[str] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        if names and item[0].isdigit():
            names[-1] += f",{item}"
        else:
            names.append(item)
    return names


def _entry(name: str, pythons: Mapping[str, str | None]) -> Entry:
    base, _, argument = name.partition(":")
    if base not in KINDS:
        raise SkimpError(f"--engines: there is no engine {base!r}; known are {', '.join(KINDS)}.")
    kind = KINDS[base]
    if kind.argument and not argument:
        raise SkimpError(f"--engines: {base} needs {kind.argument} behind a colon.")
    if argument and not (kind.argument or base == "skimp"):
        raise SkimpError(f"--engines: {base} takes nothing behind a colon, but got {argument!r}.")
    if base == "skimp" and argument and not Path(argument).exists():
        raise SkimpError(f"--engines: the plan {argument} does not exist.")
    exact = kind.exact and not argument
    python = sys.executable
    if kind.home is not None:
        python = pythons.get(kind.home) or os.environ.get(HOMES[kind.home]) or sys.executable
    return Entry(name, replace(kind, exact=exact), argument, python)
