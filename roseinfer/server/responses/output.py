"""What a chat answer consists of → the output of a response, and the events of its stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from roseinfer.server.responses.items import FunctionCallOutput, MessageOutput, OutputItem, ReasoningOutput
from roseinfer.text.chat_events import ChatEvent, ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart

Fields = dict[str, Any]

_ITEMS: dict[type[ChatEvent], type[OutputItem]] = {
    ContentDelta: MessageOutput,
    ReasoningDelta: ReasoningOutput,
    ToolCallArguments: FunctionCallOutput,
}


class ResponseOutput:
    """One answer: items one after another, of which the last is open. Events lack their sequence numbers."""

    def __init__(self) -> None:
        self.items: list[Fields] = []  # those that are closed
        self.reasoning = ""
        self._open: OutputItem | None = None

    def write(self, events: Iterable[ChatEvent], logprobs: Sequence[msgspec.Raw] = ()) -> Iterator[Fields]:
        """What these events add; `logprobs` are those of the text in them."""
        for event in events:
            if isinstance(event, ToolCallStart):
                yield from self._begin(FunctionCallOutput(self._next_index(), event))
                continue
            if not isinstance(self._open, _ITEMS[type(event)]):
                yield from self._begin(self._new_item(event))
            assert self._open is not None
            yield self._open.add(event.text, logprobs if isinstance(event, ContentDelta) else ())
            if isinstance(event, ContentDelta):
                logprobs = ()

    def close(self, status: str = "completed") -> Iterator[Fields]:
        """The end of the open item; `status` is incomplete if it was cut."""
        if self._open is not None:
            yield from self._open.end(status)
            self.items.append(self._open.fields(status))
            if isinstance(self._open, ReasoningOutput):
                self.reasoning += self._open.text
        self._open = None

    def _begin(self, item: OutputItem) -> Iterator[Fields]:
        yield from self.close()
        self._open = item
        yield from item.begin()

    def _new_item(self, event: ChatEvent) -> OutputItem:
        index = self._next_index()
        return ReasoningOutput(index) if isinstance(event, ReasoningDelta) else MessageOutput(index)

    def _next_index(self) -> int:
        return len(self.items) + (self._open is not None)
