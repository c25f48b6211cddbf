"""One choice's text to what a chat answer consists of: reasoning first, then content and calls of tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from roseinfer.text.chat_events import (
    ChatEvent,
    ContentDelta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    merge_events,
)
from roseinfer.text.reasoning import ReasoningSplitter, ReasoningTags
from roseinfer.text.tool_dialects import Tool, ToolDialect

__all__ = ["ChatEvent", "ChatOutput", "ContentDelta", "ReasoningDelta", "ToolCallArguments", "ToolCallStart"]


class ChatOutput:
    """However the text is cut, the events join to the same answer, and no text is lost.

    `dialect` is None where no tools may be called, `reasoning` where it is not to be split from the content;
    `is_reasoning_open` says that the prompt ends inside of it. Without `parallel` calls after the first are left out.
    `new_call_id` stands in for the dialect's random ids.
    """

    def __init__(
        self,
        dialect: ToolDialect | None = None,
        reasoning: ReasoningTags | None = None,
        *,
        is_reasoning_open: bool = False,
        tools: Sequence[Tool] = (),
        parallel: bool = True,
        new_call_id: Callable[[], str] | None = None,
    ) -> None:
        self._splitter = ReasoningSplitter(reasoning, is_open=is_reasoning_open) if reasoning else None
        self._parser = dialect.parser(tools, new_call_id) if dialect else None
        self._parallel = parallel
        self.has_tool_calls = False

    def push(self, text: str) -> list[ChatEvent]:
        """The events that a further piece of text completes."""
        events = self._splitter.push(text) if self._splitter else [ContentDelta(text)]
        return self._take(self._parse(events))

    def finish(self) -> list[ChatEvent]:
        """What was held back when the text ends."""
        events = self._parse(self._splitter.finish() if self._splitter else [])
        return self._take(events + (self._parser.finish() if self._parser else []))

    def _parse(self, events: Iterable[ChatEvent]) -> list[ChatEvent]:
        """Content goes through the dialect's parser."""
        parsed: list[ChatEvent] = []
        for event in events:
            if self._parser is not None and isinstance(event, ContentDelta):
                parsed += self._parser.push(event.text)
            else:
                parsed.append(event)
        return parsed

    def _take(self, events: Iterable[ChatEvent]) -> list[ChatEvent]:
        taken = merge_events([event for event in events if self._is_wanted(event)])
        self.has_tool_calls |= any(isinstance(event, ToolCallStart) for event in taken)
        return taken

    def _is_wanted(self, event: ChatEvent) -> bool:
        if isinstance(event, (ToolCallStart, ToolCallArguments)):
            return self._parallel or event.index == 0
        return bool(event.text)
