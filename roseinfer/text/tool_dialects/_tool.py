"""A function that the model may call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tool:
    """`parameters` is a JSON schema of the arguments; `is_strict` says that they must satisfy it."""

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool = False

    @staticmethod
    def from_openai(tool: Mapping[str, Any]) -> Tool:
        """From `{"type": "function", "function": {"name", "parameters", "strict"}}`; no parameters mean none."""
        function = tool["function"]
        parameters = function.get("parameters") or {"properties": {}, "additionalProperties": False}
        return Tool(function["name"], {"type": "object", **parameters}, bool(function.get("strict")))
