"""The events of one answer, collected while it is parsed."""

from __future__ import annotations

from collections.abc import Callable

from roseinfer.text.chat_events import ChatEvent, ContentDelta, ToolCallArguments, ToolCallStart, merge_events
from roseinfer.text.token_bytes import replace_surrogates


class CallEvents:
    """White space alone, before, between or behind calls, is layout and not content."""

    def __init__(self, new_call_id: Callable[[], str]) -> None:
        self._new_call_id = new_call_id
        self._events: list[ChatEvent] = []
        self._space = ""  # of a stretch of content that has nothing else so far
        self._is_blank = True
        self._num_calls = 0

    def content(self, text: str) -> None:
        """More text that belongs to no call."""
        if self._is_blank:
            self._space += text
            if not self._space or self._space.isspace():
                return
            text, self._space, self._is_blank = self._space, "", False
        if text:
            self._events.append(ContentDelta(text))

    def start(self, name: str) -> None:
        """A call begins."""
        self._space, self._is_blank = "", True
        self._events.append(ToolCallStart(self._num_calls, self._new_call_id(), replace_surrogates(name)))
        self._num_calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that was started last."""
        if text:
            self._events.append(ToolCallArguments(self._num_calls - 1, text))

    def finish(self) -> None:
        """An answer of white space alone is content after all."""
        if self._space and not self._num_calls:
            self._events.append(ContentDelta(self._space))
        self._space = ""

    def drain(self) -> list[ChatEvent]:
        """The events since the last time."""
        events, self._events = self._events, []
        return merge_events(events)
