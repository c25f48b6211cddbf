"""Hermes, Qwen 2.5 and Qwen 3: `<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>`, once per call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roseinfer.text.text_source import Steps
from roseinfer.text.tool_dialects._dialect import MENTIONS_TOOLS, ToolDialect, arguments_json
from roseinfer.text.tool_dialects._json_call import JsonCall
from roseinfer.text.tool_dialects._lark import LarkGrammar, json_call
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._tool import Tool

_OPENING = "<tool_call>"
_CLOSING = "</tool_call>"


class Dialect(ToolDialect):
    template_marks = (MENTIONS_TOOLS, _OPENING)
    markers = (_OPENING, _CLOSING)
    dropped = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>")
    opening = _OPENING
    separator = r'"\n"'

    def parser(self, tools: Sequence[Tool], new_call_id: Callable[[], str] | None = None) -> ToolCallParser:
        return _Parser([_OPENING], self.dropped, new_call_id or self.new_call_id)

    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = lark.choice([json_call("arguments", tool.name, arguments_json(tool)) for tool in tools])
        return rf'"\n" {calls} "\n" {lark.marker(_CLOSING)}'


class _Parser(ToolCallParser):
    def read_calls(self, opening: str) -> Steps[None]:
        yield from self.source.skip_space()
        while True:
            yield from JsonCall(self.source, self.events, is_eager=True, closing=_CLOSING).read()
            yield from self.source.skip_space()
            if (yield from self.source.peek()) != "{":  # some models put several into one pair of tags
                break
        yield from self.source.at(_CLOSING)
