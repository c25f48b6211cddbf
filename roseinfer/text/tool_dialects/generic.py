"""Templates that show tools to the model in a way of their own: calls are `{"name": "f", "arguments": {...}}`, a line
each, and the whole answer.

Nothing marks a call, so that free text with strict tools cannot be constrained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roseinfer.text.tool_dialects._bare_json import BareJsonParser
from roseinfer.text.tool_dialects._dialect import MENTIONS_TOOLS, ToolDialect, arguments_json
from roseinfer.text.tool_dialects._lark import LarkGrammar, json_call
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._tool import Tool


class Dialect(ToolDialect):
    template_marks = (MENTIONS_TOOLS,)
    separator = r'"\n"'

    def parser(self, tools: Sequence[Tool], new_call_id: Callable[[], str] | None = None) -> ToolCallParser:
        return BareJsonParser("", (";", ","), self.dropped, new_call_id or self.new_call_id)

    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        return lark.choice([json_call("arguments", tool.name, arguments_json(tool)) for tool in tools])
