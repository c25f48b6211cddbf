"""What llguidance says of a grammar → the error that the caller reads."""

from __future__ import annotations

import re

from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import GrammarKind

_EXCERPT = re.compile(r"\s*(\d+ \||\^|<)")  # a line of the grammar, what points into it, a debugging tag
_POSITION = re.compile(r"^(at )?\d+\(\d+\): ")
_NAMES: dict[GrammarKind, str] = {"json_schema": "json schema", "regex": "regex", "lark": "lark grammar"}
_MAX_CHARS = 400


def refusal_of(kind: GrammarKind, message: str) -> InvalidRequestError:
    """`message` without the excerpts of a text that the caller has, or never wrote."""
    return InvalidRequestError(f"the {_NAMES[kind]} cannot be used: {_reason(kind, message)[:_MAX_CHARS]}", "grammar")


def _reason(kind: GrammarKind, message: str) -> str:
    lines = [line for line in message.splitlines() if line.strip() and not _EXCERPT.match(line)]
    for line in lines:
        if line.startswith("error: "):  # the regular expression library's, behind a drawing
            return line.removeprefix("error: ")
    first = lines[0].strip() if lines else "it is too complex"
    if kind != "lark":  # positions in the text that we put around it
        first = _POSITION.sub("", first).removeprefix("failed to compile JSON schema: ")
    return first
