"""Llama 3.2 and 4 and others: the answer is a Python list of calls with keyword arguments, `[f(a="x"), g(b=1)]`.

Nothing marks a call, so that free text with strict tools cannot be constrained. A grammar lets values satisfy the
schemas of their properties; what the schema says about the object as a whole, beyond `required`, is not enforced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from roseinfer.text.text_source import MalformedText, Steps
from roseinfer.text.tool_dialects._dialect import MENTIONS_TOOLS, ToolDialect
from roseinfer.text.tool_dialects._lark import LarkGrammar, literal
from roseinfer.text.tool_dialects._parser import ToolCallParser
from roseinfer.text.tool_dialects._properties import read_properties
from roseinfer.text.tool_dialects._python_literal import read_python_literal
from roseinfer.text.tool_dialects._tool import Tool

CALL_EXAMPLE = r"\[\w+\(\w+\s*="

_PREFIXES = ("<|python_start|>", "<|python_tag|>")
_END = "<|python_end|>"

_NAME_CHARS = re.compile(r"[\w.-]*")
_KEY_CHARS = re.compile(r"[^\s=,()\[\]{}'\"]*")


class Dialect(ToolDialect):
    template_marks = (MENTIONS_TOOLS, CALL_EXAMPLE)
    foreign_marks = ("<tool_call>",)
    markers = (*_PREFIXES, _END)
    dropped = (_END, "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>")
    repeats_opening = False

    def parser(self, tools: Sequence[Tool], new_call_id: Callable[[], str] | None = None) -> ToolCallParser:
        return _Parser(["", *_PREFIXES], self.dropped, new_call_id or self.new_call_id)

    def block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = lark.choice([_call(lark, tool) for tool in tools])
        more = f'(", " {calls})*' if parallel else ""
        return f'"[" {calls} {more} "]"'


class _Parser(ToolCallParser):
    def read_calls(self, opening: str) -> Steps[None]:
        yield from self.source.skip_space()
        for prefix in _PREFIXES if not opening else ():
            yield from self.source.at(prefix)
        yield from self.source.expect("[")
        while True:
            yield from self.source.skip_space()
            yield from self._read_call()
            yield from self.source.skip_space()
            if not (yield from self.source.at(",")):
                break
        yield from self.source.expect("]")

    def _read_call(self) -> Steps[None]:
        name = yield from self.source.run(_NAME_CHARS)
        yield from self.source.expect("(")
        yield from self.source.skip_space()
        if not name:
            raise MalformedText
        key = yield from self._read_key()
        self.source.release()
        self.events.start(name)
        separator = "{"
        while key is not None:
            value = yield from read_python_literal(self.source)
            self.source.release()
            self.events.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: {value}")
            separator = ", "
            key = yield from self._read_next_key()
        self.source.release()
        self.events.arguments("{}" if separator == "{" else "}")

    def _read_next_key(self) -> Steps[str | None]:
        yield from self.source.skip_space()
        if (yield from self.source.at(",")):
            yield from self.source.skip_space()
            return (yield from self._read_key())
        yield from self.source.expect(")")
        return None

    def _read_key(self) -> Steps[str | None]:
        """The name of the next argument, read with its equals sign; None if the call is over."""
        if (yield from self.source.at(")")):
            return None
        key = yield from self.source.run(_KEY_CHARS)
        yield from self.source.skip_space()
        yield from self.source.expect("=")
        yield from self.source.skip_space()
        if not key:
            raise MalformedText
        return key


def _call(lark: LarkGrammar, tool: Tool) -> str:
    """Arguments come in the order of the schema; those that are not required may be missing."""
    after_one, first = "", ""  # what may follow an argument, and what may follow the parenthesis
    for prop in reversed(read_properties(tool)):
        argument = f"{literal(prop.name + '=')} {prop.json()}"
        if prop.is_required:
            first = lark.rule(f"{argument} {after_one}")
            after_one = lark.rule(f'", " {first}')
        else:
            first = lark.rule(" | ".join(filter(None, (f"{argument} {after_one}", first)))) + ("" if first else "?")
            after_one = lark.rule(f'(", " {argument})? {after_one}')
    return f'{literal(tool.name + "(")} {first} ")"'
