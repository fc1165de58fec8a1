"""Finds the methods and reads the plan's sections with them."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

from skimp import methods as methods_package
from skimp.errors import PlanError
from skimp.methods.base import Method
from skimp.models.anatomy import Anatomy
from skimp.plan import Plan, PlanFile

ENTRY_POINTS = "skimp.methods"


@cache
def methods() -> Mapping[str, Method]:
    """Every method by name: the folders of this package, then installed entry points."""
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(methods_package.__path__):
        if module.ispkg:
            package = importlib.import_module(f"{methods_package.__name__}.{module.name}")
            _add(found, package.METHOD)
    for point in entry_points(group=ENTRY_POINTS):
        _add(found, point.load())
    return MappingProxyType(found)


def sections(plan: Plan) -> dict[str, Any]:
    """The plan's sections as their methods' settings.

    Raises:
        PlanError: an unknown section or a field that does not fit, named.
    """
    known = methods()
    for name in plan.sections:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise PlanError(f"{name}: there is no such method; {hint}")
    # In the methods' order, not the file's: sublayers go first, then what is left is thinned.
    return {name: known[name].read(plan.sections[name]) for name in known if name in plan.sections}


def check(plan: Plan, anatomy: Anatomy) -> dict[str, Any]:
    """Check a plan against the dense model's anatomy and return its sections' settings."""
    plan.check_model(anatomy)
    found = sections(plan)
    for name, section in found.items():
        methods()[name].check(section, anatomy)
    return found


def reduce(plan: Plan, anatomy: Anatomy) -> Anatomy:
    """The anatomy of the planned model, worked out without building it."""
    for name, section in check(plan, anatomy).items():
        anatomy = methods()[name].reduce(section, anatomy)
    return anatomy


def json_schema() -> dict[str, Any]:
    """JSON Schema of a plan file with every known method's section."""
    schema = PlanFile.model_json_schema()
    schema["title"] = "skimp plan"
    for name, method in methods().items():
        section = method.schema.model_json_schema(ref_template=f"#/$defs/{name}/$defs/{{model}}")
        schema.setdefault("$defs", {})[name] = section
        schema["properties"][name] = {"$ref": f"#/$defs/{name}"}
    schema["additionalProperties"] = False
    return schema


def _add(found: dict[str, Method], method: Method) -> None:
    if method.name in found or method.name in PlanFile.model_fields:
        raise ValueError(f"two methods, or a method and a plan key, are called {method.name!r}")
    found[method.name] = method
