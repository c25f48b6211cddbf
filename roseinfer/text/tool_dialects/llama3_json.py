"""Llama 3.1 and later: the answer is `{"name": "f", "parameters": {...}}`, several with `; ` between them.

Nothing marks a call, so that free text with strict tools cannot be constrained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roseinfer.text.tool_dialects._bare_json import BareJsonParser
from roseinfer.text.tool_dialects._dialect import MENTIONS_TOOLS, ToolDialect, arguments_json
from roseinfer.text.tool_dialects._lark import LarkGrammar, json_call
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._tool import Tool

_PREFIX = "<|python_tag|>"


class Dialect(ToolDialect):
    template_marks = (MENTIONS_TOOLS, r"<\|start_header_id\|>", '"parameters"')
    foreign_marks = ("<tool_call>",)
    markers = (_PREFIX,)
    dropped = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
    separator = '"; "'

    def parser(self, tools: Sequence[Tool], new_call_id: Callable[[], str] | None = None) -> ToolCallParser:
        return BareJsonParser(_PREFIX, (";", ","), self.dropped, new_call_id or self.new_call_id)

    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        return lark.choice([json_call("parameters", tool.name, arguments_json(tool)) for tool in tools])
