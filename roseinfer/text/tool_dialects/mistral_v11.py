"""Mistral from its tokenizer v11 on: `[TOOL_CALLS]f[ARGS]{...}`, once per call."""

from __future__ import annotations

from collections.abc import Sequence

from roseinfer.text.tool_dialects._dialect import MENTIONS_TOOLS, arguments_json
from roseinfer.text.tool_dialects._lark import LarkGrammar, literal
from roseinfer.text.tool_dialects._tool import Tool
from roseinfer.text.tool_dialects.mistral import ARGS
from roseinfer.text.tool_dialects.mistral import Dialect as MistralDialect


class Dialect(MistralDialect):
    template_marks = (MENTIONS_TOOLS, r"\[TOOL_CALLS\]", r"\[ARGS\]")
    repeats_opening = True

    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        return lark.choice([f"{literal(tool.name)} {lark.marker(ARGS)} {arguments_json(tool)}" for tool in tools])
