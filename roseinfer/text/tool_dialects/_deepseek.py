"""DeepSeek's markers, and a parser for both ways to fill them."""

from __future__ import annotations

import re

from roseinfer.text.text_source import MalformedText, Steps
from roseinfer.text.tool_dialects._json_call import skip_json_value
from roseinfer.text.tool_dialects._parser import ToolCallParser

CALLS_BEGIN = "<｜tool▁calls▁begin｜>"
CALLS_END = "<｜tool▁calls▁end｜>"
CALL_BEGIN = "<｜tool▁call▁begin｜>"
CALL_END = "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
END_OF_SENTENCE = "<｜end▁of▁sentence｜>"

_NAME_CHARS = re.compile(r"[^<{\n]*")


class DeepSeekParser(ToolCallParser):
    """Reads `function<sep>f\\n```json\\n{...}\\n```` (V3, R1) and `f<sep>{...}` (V3.1)."""

    def read_calls(self, opening: str) -> Steps[None]:
        if opening == CALLS_BEGIN:
            yield from self.source.skip_space()
            yield from self.source.expect(CALL_BEGIN)
        while True:
            yield from self._read_call()
            yield from self.source.skip_space()
            yield from self.source.at(CALL_END)
            self.source.release()
            yield from self.source.skip_space()
            if not (yield from self.source.at(CALL_BEGIN)):
                break
        yield from self.source.at(CALLS_END)

    def _read_call(self) -> Steps[None]:
        name = yield from self.source.run(_NAME_CHARS)
        yield from self.source.expect(SEPARATOR)
        yield from self.source.skip_space()
        is_fenced = (yield from self.source.peek()) != "{"
        if is_fenced:
            name = yield from self.source.run(_NAME_CHARS)
            yield from self._read_fence()
        if not name.strip():
            raise MalformedText
        self.source.release()
        self.events.start(name.strip())
        with self.source.streaming(self.events.arguments):
            yield from skip_json_value(self.source, CALL_END)
        if is_fenced:
            yield from self.source.skip_space()
            yield from self.source.at("```")

    def _read_fence(self) -> Steps[None]:
        yield from self.source.skip_space()
        yield from self.source.at("```json")
        yield from self.source.skip_space()
        if (yield from self.source.peek()) != "{":
            raise MalformedText
