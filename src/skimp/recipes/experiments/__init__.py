"""The kinds of experiment, one a file: each module that exports `KIND` is found by itself."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from skimp.recipes.experiments.base import Kind


@cache
def kinds() -> Mapping[str, Kind]:
    """Every kind of experiment by name."""
    found: dict[str, Kind] = {}
    for module in pkgutil.iter_modules(__path__):
        kind = getattr(importlib.import_module(f"{__name__}.{module.name}"), "KIND", None)
        if kind is not None:
            found[kind.name] = kind
    return MappingProxyType(found)
