"""A family of plans in one entry: `for` lists values, and `{name}` stands for each in turn.

    "{select}-{keep}":
      for: {select: [topk, random], keep: [0.75, 0.5]}
      experts: {keep: "{keep}", select: "{select}"}

makes the four plans topk-0.75, topk-0.5, random-0.75 and random-0.5.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from skimp.errors import RecipeError
from skimp.recipes.recipe import DENSE

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_FOR = "for"


def expand(plans: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """Every plan's sections by its name.

    Raises:
        RecipeError: a name that is taken or cannot be typed, or a `for` that lists nothing; the
            message begins with `where`.
    """
    found: dict[str, dict[str, Any]] = {}
    for pattern, entry in plans.items():
        field = f"{where}plans.{pattern}"
        for values in _choices(entry.get(_FOR), field):
            name = str(_filled(pattern, values, whole=False))
            if not _NAME.fullmatch(name):
                raise RecipeError(
                    f"{field}: {name!r} is no name; use letters, digits, dots and dashes, and "
                    "list under `for` what stands in braces."
                )
            if name == DENSE or name in found:
                what = "always the untouched model" if name == DENSE else "there already"
                raise RecipeError(f"{field}: a plan called {name} is {what}; give another name.")
            sections = {key: part for key, part in entry.items() if key != _FOR}
            found[name] = _filled(sections, values)
    return found


def _choices(lists: Any, field: str) -> Iterator[dict[str, Any]]:
    if lists is None:
        yield {}
        return
    if not isinstance(lists, Mapping) or not all(isinstance(v, list) and v for v in lists.values()):
        raise RecipeError(f"{field}.for: must give a list of values for each name in braces.")
    for values in product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def _filled(part: Any, values: Mapping[str, Any], *, whole: bool = True) -> Any:
    """`part` with values in place of names; text that is one name alone takes the value itself."""
    if isinstance(part, Mapping):
        return {key: _filled(item, values) for key, item in part.items()}
    if isinstance(part, list):
        return [_filled(item, values) for item in part]
    if not isinstance(part, str):
        return part
    for name, value in values.items():
        if whole and part == f"{{{name}}}":
            return value
        part = part.replace(f"{{{name}}}", str(value))
    return part
