"""Tool dialects: how models write calls of tools. One file each, found by name; `find_dialect` picks one for a model.

A file defines `Dialect`, a `ToolDialect`: marks by which chat templates are recognised, a streaming parser, and the
grammar of answers that must be calls. Files with a leading underscore are what they share.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

from roseinfer.text.tokenizer import Tokenizer
from roseinfer.text.tool_dialects._dialect import ToolDialect
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._tool import Tool

__all__ = [
    "Tool",
    "ToolCallParser",
    "ToolDialect",
    "dialect_names",
    "find_dialect",
    "find_special_markers",
    "load_dialect",
]


@cache
def dialect_names() -> tuple[str, ...]:
    """All dialects there are."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


@cache
def load_dialect(name: str) -> ToolDialect:
    """The dialect of a file; `name` is one of `dialect_names()`."""
    dialect: ToolDialect = importlib.import_module(f"{__name__}.{name}").Dialect()
    return dialect


def find_dialect(template_source: str) -> ToolDialect | None:
    """The dialect that a chat template asks for, the one with the most marks if several do. None if it has no tools."""
    dialects = [load_dialect(name) for name in dialect_names()]
    matching = [dialect for dialect in dialects if dialect.matches(template_source)]
    return max(matching, key=lambda dialect: len(dialect.template_marks), default=None)


def find_special_markers(tokenizer: Tokenizer, markers: Iterable[str]) -> dict[str, int]:
    """The ids of those markers that are special tokens of this vocabulary; text without special tokens lacks them."""
    ids = {marker: tokenizer.encode(marker, add_bos=False) for marker in markers}
    return {marker: found[0] for marker, found in ids.items() if len(found) == 1 and tokenizer.is_special(found[0])}
