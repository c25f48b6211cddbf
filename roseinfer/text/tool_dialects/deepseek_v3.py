"""DeepSeek V3 and R1: the function's name in a line, its arguments in a fenced block of JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from roseinfer.text.tool_dialects import _deepseek as deepseek
from roseinfer.text.tool_dialects._dialect import ToolDialect, arguments_json
from roseinfer.text.tool_dialects._lark import LarkGrammar, literal
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._tool import Tool

_FENCE = "\n```json\n"


class Dialect(ToolDialect):
    template_marks: ClassVar[tuple[str, ...]] = (deepseek.CALLS_BEGIN, deepseek.SEPARATOR, "```json")
    markers = (
        deepseek.CALLS_BEGIN,
        deepseek.CALLS_END,
        deepseek.CALL_BEGIN,
        deepseek.CALL_END,
        deepseek.SEPARATOR,
    )
    dropped = (deepseek.END_OF_SENTENCE,)
    opening = deepseek.CALLS_BEGIN
    repeats_opening = False
    separator = r'"\n"'

    def parser(self, tools: Sequence[Tool], new_call_id: Callable[[], str] | None = None) -> ToolCallParser:
        openings = [deepseek.CALLS_BEGIN, deepseek.CALL_BEGIN]
        return deepseek.DeepSeekParser(openings, self.dropped, new_call_id or self.new_call_id)

    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = lark.choice([self.call(lark, tool) for tool in tools])
        call = lark.rule(f"{lark.marker(deepseek.CALL_BEGIN)} {calls} {lark.marker(deepseek.CALL_END)}")
        more = f"({self.separator} {call})*" if parallel else ""
        return f"{call} {more} {lark.marker(deepseek.CALLS_END)}"

    def call(self, lark: LarkGrammar, tool: Tool) -> str:
        """A call between its markers."""
        head = f'"function" {lark.marker(deepseek.SEPARATOR)} {literal(tool.name + _FENCE)}'
        return rf'{head} {arguments_json(tool)} "\n```"'
