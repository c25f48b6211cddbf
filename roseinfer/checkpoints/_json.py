"""JSON from files that may be hostile: bounded in size, depth and number length; duplicate keys are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from roseinfer.checkpoints._files import about, read_bounded
from roseinfer.core.errors import CheckpointError

MAX_DEPTH = 64
MAX_DIGITS = 32


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object in a file; a `CheckpointError` names the file."""
    with about(path.name):
        return parse_json(read_bounded(path, max_bytes))


def parse_json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode(), object_pairs_hook=_object, parse_int=_integer)
    except (ValueError, RecursionError) as error:  # among them UnicodeDecodeError and JSONDecodeError
        raise CheckpointError(f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError("not a JSON object")
    _require_shallow(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key is there twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise CheckpointError(f"nested deeper than {MAX_DEPTH}")


def _children(value: Any) -> list[Any]:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [member for member in members if isinstance(member, (dict, list))]
