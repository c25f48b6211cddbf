"""Qwen 3 Coder: `<tool_call>\\n<function=f>\\n<parameter=key>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>`.

Values are plain text up to the closing tag, which they therefore cannot hold; their types come from the tool's schema.
Under a grammar strings are free text, or one of an enum: patterns and lengths are not enforced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from roseinfer.text.text_source import MalformedText, Steps
from roseinfer.text.tool_dialects._dialect import MENTIONS_TOOLS, ToolDialect
from roseinfer.text.tool_dialects._lark import LarkGrammar, literal
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._properties import Property, is_of_type, read_properties
from roseinfer.text.tool_dialects._tool import Tool

_OPENING = "<tool_call>"
_CLOSING = "</tool_call>"
_FUNCTION = "<function="
_PARAMETER = "<parameter="
_PARAMETER_END = "</parameter>"

_NAME_CHARS = re.compile(r"[^<>\n]*")


class Dialect(ToolDialect):
    template_marks = (MENTIONS_TOOLS, _OPENING, _FUNCTION)
    markers = (_OPENING, _CLOSING)
    dropped = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    opening = _OPENING
    separator = r'"\n"'

    def parser(self, tools: Sequence[Tool], new_call_id: Callable[[], str] | None = None) -> ToolCallParser:
        return _Parser(tools, self.dropped, new_call_id or self.new_call_id)

    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = lark.choice([_function(lark, tool) for tool in tools])
        return rf'"\n" {calls} "</function>\n" {lark.marker(_CLOSING)}'


class _Parser(ToolCallParser):
    def __init__(self, tools: Sequence[Tool], dropped: Sequence[str], new_call_id: Callable[[], str]) -> None:
        self._types = {tool.name: {prop.name: prop.types() for prop in read_properties(tool)} for tool in tools}
        super().__init__([_OPENING, _FUNCTION], dropped, new_call_id)

    def read_calls(self, opening: str) -> Steps[None]:
        if opening == _OPENING:
            yield from self.source.skip_space()
            yield from self.source.expect(_FUNCTION)
        name = (yield from self._read_name()).strip()
        if not name:
            raise MalformedText
        self.source.release()
        self.events.start(name)
        yield from self._read_parameters(self._types.get(name, {}))
        yield from self.source.skip_space()
        yield from self.source.at(_CLOSING)

    def _read_name(self) -> Steps[str]:
        name = yield from self.source.run(_NAME_CHARS)
        yield from self.source.expect(">")
        return name

    def _read_parameters(self, types: Mapping[str, frozenset[str]]) -> Steps[None]:
        seen: set[str] = set()
        while True:
            yield from self.source.skip_space()
            if not (yield from self.source.at(_PARAMETER)):
                break
            key = yield from self._read_name()
            value = yield from self.source.until(_PARAMETER_END)
            if key in seen:
                raise MalformedText
            text = _to_json(value.removeprefix("\n").removesuffix("\n"), types.get(key, frozenset()))
            self.events.arguments(f"{', ' if seen else '{'}{json.dumps(key, ensure_ascii=False)}: {text}")
            self.source.release()
            seen.add(key)
        yield from self.source.expect("</function>")
        self.events.arguments("}" if seen else "{}")
        self.source.release()


def _to_json(value: str, types: frozenset[str]) -> str:
    """A value's JSON text: a string unless the schema allows what it looks like."""
    text = value.lower() if types == {"boolean"} else value
    try:
        parsed = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        parsed = value
    if is_of_type(parsed, types - {"string"}):
        return text.strip()
    return json.dumps(value, ensure_ascii=False)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _function(lark: LarkGrammar, tool: Tool) -> str:
    parameters = [(_parameter(lark, prop), prop.is_required) for prop in read_properties(tool)]
    body = " ".join(text if is_required else f"({text})?" for text, is_required in parameters)
    return f"{_line(f'{_FUNCTION}{tool.name}>')} {body}"


def _parameter(lark: LarkGrammar, prop: Property) -> str:
    return f"{_line(f'{_PARAMETER}{prop.name}>')} {_value(lark, prop)}"


def _value(lark: LarkGrammar, prop: Property) -> str:
    """A value and the end of its tag."""
    end = f"\n{_PARAMETER_END}\n"
    types = prop.types()
    if types and "string" not in types:
        return f"{prop.json()} {literal(end)}"
    if (values := prop.literals()) is not None:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        return f"({' | '.join(map(literal, texts))}) {literal(end)}"
    return rf'{lark.text_until(_PARAMETER_END)} "\n"'


def _line(text: str) -> str:
    return literal(text + "\n")
