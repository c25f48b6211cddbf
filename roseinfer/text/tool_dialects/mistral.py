"""Mistral up to its tokenizer v7: `[TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]`, one list for all calls.

The parser reads what later models write as well: `[TOOL_CALLS]f[ARGS]{...}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

from roseinfer.text.text_source import MalformedText, Steps
from roseinfer.text.tool_dialects._dialect import MENTIONS_TOOLS, ToolDialect, arguments_json, random_id
from roseinfer.text.tool_dialects._json_call import JsonCall, skip_json_value
from roseinfer.text.tool_dialects._lark import LarkGrammar, json_call
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._tool import Tool

OPENING = "[TOOL_CALLS]"
CALL_ID = "[CALL_ID]"
ARGS = "[ARGS]"

_NAME_CHARS = re.compile(r"[\w.-]*")


class Dialect(ToolDialect):
    template_marks: ClassVar[tuple[str, ...]] = (MENTIONS_TOOLS, r"\[TOOL_CALLS\]")
    markers = (OPENING, CALL_ID, ARGS)
    dropped = ("</s>",)
    opening = OPENING
    repeats_opening = False

    def new_call_id(self) -> str:
        return random_id(9)  # Mistral's templates refuse any other length

    def parser(self, tools: Sequence[Tool], new_call_id: Callable[[], str] | None = None) -> ToolCallParser:
        return _Parser([OPENING], self.dropped, new_call_id or self.new_call_id)

    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = lark.choice([json_call("arguments", tool.name, arguments_json(tool)) for tool in tools])
        more = f'(", " {calls})*' if parallel else ""
        return f'" "? "[" {calls} {more} "]"'


class _Parser(ToolCallParser):
    def read_calls(self, opening: str) -> Steps[None]:
        yield from self.source.skip_space()
        first = yield from self.source.peek()
        if first == "[":
            yield from self._read_list()
        elif first == "{":
            yield from JsonCall(self.source, self.events, is_eager=True).read()
        else:
            yield from self._read_named()

    def _read_list(self) -> Steps[None]:
        yield from self.source.expect("[")
        while True:
            yield from self.source.skip_space()
            yield from JsonCall(self.source, self.events, is_eager=True).read()
            yield from self.source.skip_space()
            if not (yield from self.source.at(",")):
                break
        yield from self.source.expect("]")

    def _read_named(self) -> Steps[None]:
        name = yield from self.source.run(_NAME_CHARS)
        if (yield from self.source.at(CALL_ID)):
            yield from self.source.run(_NAME_CHARS)
        yield from self.source.at(ARGS)
        yield from self.source.skip_space()
        if not name or (yield from self.source.peek()) != "{":
            raise MalformedText
        self.source.release()
        self.events.start(name)
        with self.source.streaming(self.events.arguments):
            yield from skip_json_value(self.source)
