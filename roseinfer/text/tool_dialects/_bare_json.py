"""Calls that nothing marks: the answer is a JSON object with a name and arguments, or several of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roseinfer.text.text_source import MalformedText, Steps
from roseinfer.text.tool_dialects._json_call import JsonCall
from roseinfer.text.tool_dialects._parser import ToolCallParser


class BareJsonParser(ToolCallParser):
    """`prefix` is a token that may stand before the first call; `separators` stand between calls."""

    def __init__(
        self, prefix: str, separators: Sequence[str], dropped: Sequence[str], new_call_id: Callable[[], str]
    ) -> None:
        self._prefix = prefix
        self._separators = separators
        super().__init__(["", prefix] if prefix else [""], dropped, new_call_id)

    def read_calls(self, opening: str) -> Steps[None]:
        yield from self.source.skip_space()
        if self._prefix and not opening:
            yield from self.source.at(self._prefix)
            yield from self.source.skip_space()
        while True:
            yield from JsonCall(self.source, self.events, is_eager=False).read()
            yield from self._skip_separator()
            if (yield from self.source.peek()) != "{":
                raise MalformedText  # what was read since the call is content

    def _skip_separator(self) -> Steps[None]:
        yield from self.source.skip_space()
        for separator in self._separators:
            if (yield from self.source.at(separator)):
                yield from self.source.skip_space()
                return
