"""What a chat answer consists of → blocks of Anthropic's content, whole or as the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import from_json

from roseinfer.text.chat_events import (
    ChatEvent,
    ContentDelta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    merge_events,
)

Block = dict[str, Any]
Event = dict[str, Any]


def content_of(events: list[ChatEvent]) -> list[Block]:
    """The blocks of a whole answer."""
    blocks: list[Block] = []
    for event in merge_events(events):
        match event:
            case ContentDelta(text):
                blocks.append({**_new_block(event), "text": text})
            case ReasoningDelta(text):
                blocks.append({**_new_block(event), "thinking": text})
            case ToolCallStart():
                blocks.append(_new_block(event))
            case ToolCallArguments(_, text):
                blocks[-1]["input"] = _parse_input(text)
    return blocks


def _new_block(event: ChatEvent) -> Block:
    """The block that an event belongs to, as long as there is nothing in it."""
    match event:
        case ContentDelta():
            return {"type": "text", "text": "", "citations": None}
        case ReasoningDelta():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case ToolCallStart():
            return {"type": "tool_use", "id": event.call_id, "name": event.name, "input": {}}
        case ToolCallArguments():
            raise ValueError("arguments come behind the start of their call")


def _parse_input(arguments: str) -> dict[str, Any]:
    """What is complete of it, where the answer was cut; clients read streamed input in the same way."""
    try:
        value = from_json(arguments, allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class BlockEvents:
    """The stream's events for the content of one answer: each block is opened, filled and closed before the next."""

    def __init__(self) -> None:
        self._index = -1
        self._open: type[ChatEvent] | None = None  # the kind of delta that goes into the open block

    def write(self, events: Iterable[ChatEvent]) -> Iterator[Event]:
        """What these events add."""
        for event in events:
            if isinstance(event, ToolCallStart):
                yield from self._begin(event, ToolCallArguments)
                continue
            if not isinstance(event, self._open or ()):
                yield from self._begin(event, type(event))
            yield {"type": "content_block_delta", "index": self._index, "delta": _delta(event)}

    def close(self) -> Iterator[Event]:
        """The end of the last block."""
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = None

    def _begin(self, event: ChatEvent, kind: type[ChatEvent]) -> Iterator[Event]:
        yield from self.close()
        self._index += 1
        self._open = kind
        yield {"type": "content_block_start", "index": self._index, "content_block": _new_block(event)}


def _delta(event: ChatEvent) -> Block:
    match event:
        case ContentDelta(text):
            return {"type": "text_delta", "text": text}
        case ReasoningDelta(text):
            return {"type": "thinking_delta", "thinking": text}
        case ToolCallArguments(_, text):
            return {"type": "input_json_delta", "partial_json": text}
        case ToolCallStart():
            raise ValueError("a call begins a block")
