"""JSON schemas of every kind: small ones for each keyword, and larger ones as they are found in the wild."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("schemas")


def load_schemas() -> list[tuple[str, dict[str, Any]]]:
    """(name, schema) of all, in a fixed order; the name is unique and tells the file."""
    found = []
    for path in sorted(_FOLDER.glob("*.json")):
        schemas = json.loads(path.read_text(encoding="utf-8"))
        found += [(f"{path.stem}: {name}", schema) for name, schema in schemas.items()]
    return found
