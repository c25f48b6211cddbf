"""The part of a streaming parser that all dialects share: content until a marker, then the dialect's calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from roseinfer.text.chat_events import ChatEvent
from roseinfer.text.text_source import MalformedText, MarkerSearch, Steps, TextSource
from roseinfer.text.tool_dialects._call_events import CallEvents


class ToolCallParser(ABC):
    """One answer. Text that is no call is content; nothing is ever raised for what a model writes.

    Calls begin at one of `openings`, or with the answer if "" is among them; `dropped` are the names of special
    tokens that are no content.
    """

    def __init__(self, openings: Sequence[str], dropped: Sequence[str], new_call_id: Callable[[], str]) -> None:
        self.source = TextSource()
        self.events = CallEvents(new_call_id)
        self._openings = frozenset(openings)
        self._search = MarkerSearch(marker for marker in (*openings, *dropped) if marker)
        self._steps = self._parse()
        next(self._steps, None)

    def push(self, text: str) -> list[ChatEvent]:
        """The events that a further piece of the answer completes."""
        self.source.feed(text)
        next(self._steps, None)
        return self.events.drain()

    def finish(self) -> list[ChatEvent]:
        """What was held back when the answer ends."""
        self.source.end()
        next(self._steps, None)
        self.events.finish()
        return self.events.drain()

    @abstractmethod
    def read_calls(self, opening: str) -> Steps[None]:
        """The calls behind `opening`, which was read. MalformedText where they stop being calls: what is still held
        then is content, and so is what follows, up to the next opening.
        """

    def _parse(self) -> Steps[None]:
        if "" in self._openings:
            yield from self._try_calls("")
        while (marker := (yield from self.source.until_any(self._search, self.events.content))) is not None:
            if marker in self._openings:
                yield from self._try_calls(marker)
            else:
                self.source.release()

    def _try_calls(self, opening: str) -> Steps[None]:
        try:
            yield from self.read_calls(opening)
        except MalformedText:
            self.events.content(self.source.release())
        else:
            self.source.release()
