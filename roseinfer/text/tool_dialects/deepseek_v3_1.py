"""DeepSeek V3.1: the function's name, a separator, its arguments as JSON."""

from __future__ import annotations

from roseinfer.text.tool_dialects import _deepseek as deepseek
from roseinfer.text.tool_dialects._dialect import arguments_json
from roseinfer.text.tool_dialects._lark import LarkGrammar, literal
from roseinfer.text.tool_dialects._tool import Tool
from roseinfer.text.tool_dialects.deepseek_v3 import Dialect as DeepSeekV3Dialect


class Dialect(DeepSeekV3Dialect):
    template_marks = (deepseek.CALLS_BEGIN, deepseek.SEPARATOR)
    separator = ""

    def call(self, lark: LarkGrammar, tool: Tool) -> str:
        return f"{literal(tool.name)} {lark.marker(deepseek.SEPARATOR)} {arguments_json(tool)}"
