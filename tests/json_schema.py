"""The small part of JSON Schema that pydantic writes, checked without another dependency."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
# What a schema may say that checks nothing, and what `faults` knows.
NOTES = {"title", "description", "default", "$defs", "examples"}
KNOWN = {
    "$ref", "type", "const", "enum", "pattern", "minimum", "required", "properties",
    "additionalProperties", "items", "anyOf",
}  # fmt: skip


def faults(value: Any, schema: Any, root: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Where `value` breaks `schema`; nothing if it holds. An unknown keyword is an error here."""
    if isinstance(schema, bool):
        if not schema:
            yield f"{path}: not allowed"
        return
    assert schema.keys() <= KNOWN | NOTES, schema.keys() - KNOWN - NOTES
    if "$ref" in schema:
        yield from faults(value, resolve(schema["$ref"], root), root, path)
    if "anyOf" in schema and all(list(faults(value, s, root, path)) for s in schema["anyOf"]):
        yield f"{path}: fits none of anyOf"
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (kind != "boolean" and value is True)):
        yield f"{path}: is no {kind}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{path}: is not {schema['const']}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: is not among {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: does not match {schema['pattern']}"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{path}: is below {schema['minimum']}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from faults(item, schema.get("items", True), root, f"{path}.{index}")
    if isinstance(value, dict):
        yield from _object_faults(value, schema, root, path)


def _object_faults(
    value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], path: str
) -> Iterator[str]:
    yield from (
        f"{path}.{key}: is missing" for key in schema.get("required", ()) if key not in value
    )
    properties = schema.get("properties", {})
    for key, item in value.items():
        wanted = properties.get(key, schema.get("additionalProperties", True))
        yield from faults(item, wanted, root, f"{path}.{key}")


def resolve(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found
