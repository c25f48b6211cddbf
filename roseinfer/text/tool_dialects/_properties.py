"""A tool's parameters one by one, for dialects that do not write them as one JSON object.

What a schema says about the object as a whole, beyond which properties it requires, has no place there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roseinfer.text.tool_dialects._lark import json_value
from roseinfer.text.tool_dialects._tool import Tool

_MAX_DEPTH = 16  # of references and alternatives; a reference may go in a circle

_TYPE_NAMES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Property:
    """One parameter; a schema that is a reference is what it refers to."""

    name: str
    schema: Mapping[str, Any]
    is_required: bool
    tool: Tool

    def json(self) -> str:
        """Its value as JSON, for a grammar; its schema keeps the definitions that it may refer to."""
        definitions = {
            key: self.tool.parameters[key] for key in ("$defs", "definitions") if key in self.tool.parameters
        }
        return json_value({**definitions, **self.schema}, is_strict=self.tool.is_strict)

    def types(self) -> frozenset[str]:
        """The names of the JSON types that its schema allows, empty where it does not say."""
        return _types(self.schema, self.tool.parameters, 0)

    def literals(self) -> list[Any] | None:
        """The values of `enum` or `const`, None where there is neither."""
        return _literals(self.schema)


def read_properties(tool: Tool) -> list[Property]:
    """In the schema's order; those that are only required come last."""
    schemas = _mapping(tool.parameters.get("properties"))
    required = [name for name in _list(tool.parameters.get("required")) if isinstance(name, str)]
    names = dict.fromkeys([*schemas, *required])
    return [
        Property(name, _resolve(_mapping(schemas.get(name)), tool.parameters, 0), name in required, tool)
        for name in names
    ]


def is_of_type(value: Any, types: frozenset[str]) -> bool:
    """Whether a JSON value has one of these types."""
    return _TYPE_NAMES[type(value)] in types or (type(value) is int and "number" in types)


def _types(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> frozenset[str]:
    schema = _resolve(schema, root, depth)
    if depth > _MAX_DEPTH:
        return frozenset()
    if "type" in schema:
        given = schema["type"]
        return frozenset(name for name in [given, *_list(given)] if isinstance(name, str))
    if (values := _literals(schema)) is not None:
        return frozenset(_TYPE_NAMES[type(value)] for value in values)
    parts = [part for key in ("anyOf", "oneOf", "allOf") for part in _list(schema.get(key))]
    return frozenset[str]().union(*(_types(_mapping(part), root, depth + 1) for part in parts))


def _literals(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return _list(schema["enum"]) if "enum" in schema else None


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """What `{"$ref": "#/$defs/City"}` refers to; {} for what is not there."""
    if not isinstance(schema.get("$ref"), str) or depth > _MAX_DEPTH:
        return schema
    found: Any = root
    for step in schema["$ref"].removeprefix("#").split("/")[1:]:
        found = _mapping(found).get(step.replace("~1", "/").replace("~0", "~"))
    siblings = {key: value for key, value in schema.items() if key != "$ref"}
    return _resolve({**_mapping(found), **siblings}, root, depth + 1)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
