"""A request's JSON schema, checked for all that would be ignored, and made ready to compile.

Whatever passes is enforced: an answer that ends by itself always validates (JSON Schema 2020-12, or the draft that
`$schema` names). Annotations are dropped, among them formats that nobody here knows.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

from roseinfer.constraints.limits import MAX_SCHEMA_DEPTH
from roseinfer.core.errors import InvalidRequestError

# JSON allows any amount of white space, and a model may write nothing else for ever. One or two spaces, or a line
# break with an indentation, are all that pretty printing needs; nothing before or after the value.
WHITESPACE = r"\x20{1,2}|\x0A[\x20\x09]{0,64}"

_ANNOTATIONS = frozenset(
    [
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentMediaType",
        "contentEncoding",
        "contentSchema",
        "format",
        "$vocabulary",
        "x-guidance",
    ]
)
# The formats that llguidance enforces, which stay.
_FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
_UNSUPPORTED = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
        "$dynamicAnchor",
        "$recursiveRef",
        "$recursiveAnchor",
        "extends",
        "disallow",
        "divisibleBy",
    ]
)
_ONE_SCHEMA = ("items", "additionalItems", "additionalProperties")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const", "enum")
_MAX_EXACT = 2**53  # bounds are compiled as doubles

Schema = dict[str, Any]


def prepare_schema(text: str) -> str:
    """JSON in ASCII. Raises InvalidRequestError that names what is wrong or not supported."""
    root = _parse(text)
    if root is True:
        root = {}
    if not isinstance(root, dict):
        raise _error("it must be an object")
    _SchemaChecker(root).check()
    root["x-guidance"] = {"whitespace_pattern": WHITESPACE}
    return json.dumps(root)


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise _error("it is too deeply nested") from None
    except ValueError as error:
        raise _error(f"it is not JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _error(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"the json schema cannot be used: {reason}", "grammar")


class _SchemaChecker:
    """Walks every schema within `root`, also those that only a `$ref` leads to, and changes them in place."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._seen: set[int] = set()

    def check(self) -> None:
        pending: list[tuple[Any, int]] = [(self._root, 1)]
        while pending:
            schema, depth = pending.pop()
            if not isinstance(schema, dict) or id(schema) in self._seen:
                continue
            if depth > MAX_SCHEMA_DEPTH:
                raise _error(f"its schemas may be nested {MAX_SCHEMA_DEPTH} deep, not deeper")
            self._seen.add(id(schema))
            _check_one(schema)
            pending += [(child, depth + 1) for child in _subschemas(schema)]
            # A schema that is referred to is as deep as it stands, which is looked at when it is found there too.
            pending += [(target, 1) for target in self._targets(schema)]

    def _targets(self, schema: Schema) -> list[Any]:
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return []
        node: Any = self._root
        for part in reference[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and key.isdecimal() and len(key) < 10 and int(key) < len(node):
                node = node[int(key)]
            elif isinstance(node, dict) and key in node:
                node = node[key]
            else:
                return []  # the compiler says that it leads nowhere
        return [node]


def _subschemas(schema: Schema) -> list[Any]:
    found = [schema[key] for key in _ONE_SCHEMA if isinstance(schema.get(key), dict)]
    for key in _SCHEMA_LISTS:
        if isinstance(schema.get(key), list):
            found += schema[key]
    for key in _SCHEMA_MAPS:
        if isinstance(schema.get(key), dict):
            found += schema[key].values()
    return found


def _check_one(schema: Schema) -> None:
    _drop_what_says_nothing(schema)
    unsupported = sorted(_UNSUPPORTED & schema.keys())
    if unsupported:
        raise _error(f"keywords that are not supported: {', '.join(unsupported)}")
    for key in _NUMBERS:
        _check_numbers(key, schema.get(key))
    _shift_exclusive_bounds(schema)
    _check_object(schema)


def _drop_what_says_nothing(schema: Schema) -> None:
    for key in _ANNOTATIONS & schema.keys():
        if key != "format" or not _is_enforced(schema[key]):
            del schema[key]
    for key in _UNSUPPORTED & schema.keys():
        if _says_nothing(key, schema):
            del schema[key]


def _is_enforced(format_name: Any) -> bool:
    return isinstance(format_name, str) and format_name in _FORMATS


def _says_nothing(key: str, schema: Schema) -> bool:
    value = schema[key]
    if key in ("uniqueItems", "not", "$recursiveAnchor"):
        return value is False
    if key == "propertyNames":
        return value in (True, {}, {"type": "string"})
    if key in ("unevaluatedItems", "unevaluatedProperties"):
        return value in (True, {})
    if key in ("dependentRequired", "dependentSchemas", "dependencies"):
        return bool(value == {})
    return key == "$dynamicAnchor"  # only a $dynamicRef could tell


def _check_numbers(key: str, value: Any) -> None:
    """Integers have to be exact as doubles, and nothing may be infinite. The walk has no recursion to exhaust."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, int) and abs(item) > _MAX_EXACT:
            raise _error(f"integers in {key} may be at most 2**53 in size")
        elif isinstance(item, float) and not math.isfinite(item):
            raise _error(f"numbers in {key} must be finite")


def _shift_exclusive_bounds(schema: Schema) -> None:
    """Where numbers lie between an exclusive whole bound and another within 1 of it, llguidance lets that bound in.

    So an inclusive one stands a billionth further inside, as `allOf` can bring the two together later.
    """
    if schema.get("type") == "integer":
        return
    for exclusive, inclusive, sign, tighter in (
        ("exclusiveMinimum", "minimum", 1, max),
        ("exclusiveMaximum", "maximum", -1, min),
    ):
        bound = schema.get(exclusive)
        if not _is_number(bound) or bound != int(bound):
            continue
        shifted = bound + sign * max(1e-9, math.ulp(bound))
        other = schema.get(inclusive)
        schema[inclusive] = tighter(shifted, other) if _is_number(other) else shifted
        del schema[exclusive]


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_object(schema: Schema) -> None:
    """Additional keys may come twice, which JSON takes for one, and control characters have two spellings."""
    properties, required = schema.get("properties"), schema.get("required")
    names = list(properties) if isinstance(properties, dict) else []
    needed = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    if any(char < " " for name in names + needed for char in name):
        raise _error("names of properties must have no control characters")
    least = schema.get("minProperties")
    if isinstance(least, int) and least > len(set(needed)) + 1:
        raise _error(f"minProperties may be at most one more than the required properties, got {least}")
