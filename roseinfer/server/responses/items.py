"""The items that an answer consists of, each with the events of its way through a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from roseinfer.server.middleware.request_id import new_request_id
from roseinfer.text.chat_events import ToolCallStart

Fields = dict[str, Any]


class OutputItem(ABC):
    """One item while it is written; `index` is its place in the output. Events lack their sequence numbers."""

    def __init__(self, index: int, prefix: str) -> None:
        self._index = index
        self._id = f"{prefix}_{new_request_id()}"
        self._pieces: list[str] = []

    @abstractmethod
    def fields(self, status: str) -> Fields:
        """The item as it is now."""

    @abstractmethod
    def begin(self) -> list[Fields]:
        """The events that open it."""

    @abstractmethod
    def add(self, text: str, logprobs: Sequence[msgspec.Raw] = ()) -> Fields:
        """More text, as an event."""

    @abstractmethod
    def end(self, status: str) -> list[Fields]:
        """The events that close it."""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def _added(self) -> Fields:
        item = self.fields("in_progress")
        return {"type": "response.output_item.added", "output_index": self._index, "item": item}

    def _done(self, status: str) -> Fields:
        return {"type": "response.output_item.done", "output_index": self._index, "item": self.fields(status)}

    def _event(self, name: str, **fields: Any) -> Fields:
        return {"type": f"response.{name}", "item_id": self._id, "output_index": self._index, **fields}


class FunctionCallOutput(OutputItem):
    """A call; its text is the JSON of the arguments."""

    def __init__(self, index: int, call: ToolCallStart) -> None:
        super().__init__(index, "fc")
        self._call = call

    def fields(self, status: str) -> Fields:
        call = {"call_id": self._call.call_id, "name": self._call.name, "arguments": self.text}
        return {"id": self._id, "type": "function_call", "status": status, **call}

    def begin(self) -> list[Fields]:
        return [self._added()]

    def add(self, text: str, logprobs: Sequence[msgspec.Raw] = ()) -> Fields:
        self._pieces.append(text)
        return self._event("function_call_arguments.delta", delta=text)

    def end(self, status: str) -> list[Fields]:
        return [self._event("function_call_arguments.done", arguments=self.text), self._done(status)]


class PartOutput(OutputItem):
    """An item whose content is one part of text."""

    prefix: str
    text_events: str  # what those of the text are called

    def __init__(self, index: int) -> None:
        super().__init__(index, self.prefix)
        self._has_part = False

    @abstractmethod
    def part(self) -> Fields:
        """The part as it is now."""

    def begin(self) -> list[Fields]:
        added = self._added()
        event = self._part_event("content_part.added", part=self.part())
        self._has_part = True
        return [added, event]

    def end(self, status: str) -> list[Fields]:
        part = self.part()
        text = {name: part[name] for name in ("text", "logprobs") if name in part}
        return [
            self._part_event(f"{self.text_events}.done", **text),
            self._part_event("content_part.done", part=part),
            self._done(status),
        ]

    def _content(self) -> list[Fields]:
        return [self.part()] if self._has_part else []

    def _part_event(self, name: str, **fields: Any) -> Fields:
        return self._event(name, content_index=0, **fields)


class MessageOutput(PartOutput):
    """The answer's text."""

    prefix = "msg"
    text_events = "output_text"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[msgspec.Raw] = []

    def fields(self, status: str) -> Fields:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": self._content(),
        }

    def part(self) -> Fields:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self._logprobs)}

    def add(self, text: str, logprobs: Sequence[msgspec.Raw] = ()) -> Fields:
        self._pieces.append(text)
        self._logprobs += logprobs
        return self._part_event("output_text.delta", delta=text, logprobs=list(logprobs))


class ReasoningOutput(PartOutput):
    """What the model thinks before it answers."""

    prefix = "rs"
    text_events = "reasoning_text"

    def fields(self, status: str) -> Fields:
        return {"id": self._id, "type": "reasoning", "status": status, "summary": [], "content": self._content()}

    def part(self) -> Fields:
        return {"type": "reasoning_text", "text": self.text}

    def add(self, text: str, logprobs: Sequence[msgspec.Raw] = ()) -> Fields:
        self._pieces.append(text)
        return self._part_event("reasoning_text.delta", delta=text)
