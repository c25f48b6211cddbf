"""JSON schemas of every kind: small ones for each keyword, and larger ones as they are found in the wild."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

_FOLDER = Path(__file__).with_name("schemas")


def load_schemas() -> list[tuple[str, dict[str, Any]]]:
    """(name, schema) of all, in a fixed order; the name is unique and tells the file."""
    found = []
    for path in sorted(_FOLDER.glob("*.json")):
        schemas = json.loads(path.read_text(encoding="utf-8"))
        found += [(f"{path.stem}: {name}", schema) for name, schema in schemas.items()]
    return found


def validator_of(schema: dict[str, Any]) -> Validator:
    """Numbers are decimal, as in floats 0.3 is no multiple of 0.1; formats are annotations."""
    decimal = json.loads(json.dumps(schema), parse_float=Decimal)
    return validator_for(schema, default=Draft202012Validator)(decimal)


def parse(text: bytes | str) -> Any:
    return json.loads(text, parse_float=exact)


def exact(number: str) -> Decimal | float:
    try:
        return Decimal(number)
    except InvalidOperation:  # an exponent of many digits
        return float(number)
