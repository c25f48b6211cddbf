"""What a model thinks before it answers, split from the answer: `<think>...</think>` and its likes.

Detection reads the chat template for the tags, and the rendered prompt for whether it has opened them already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from roseinfer.text.chat_events import ChatEvent, ContentDelta, ReasoningDelta, merge_events
from roseinfer.text.text_source import MarkerSearch, Steps, TextSource

_END_TAG = re.compile(r"</((?:\w+:)?(?:think|thinking|thought|reasoning))>|\[/(THINK)\]")
_NEWLINES = re.compile(r"\n*")


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """The pair of tags around the reasoning."""

    start: str
    end: str

    def is_opened_by(self, prompt: str) -> bool:
        """Whether the answer to this rendered prompt begins inside of the reasoning."""
        return prompt.rstrip().endswith(self.start)


def find_reasoning_tags(template_source: str) -> ReasoningTags | None:
    """The tags that a chat template names, None for models that do not reason."""
    match = _END_TAG.search(template_source)
    if match is None:
        return None
    return ReasoningTags(f"<{match[1]}>", f"</{match[1]}>") if match[1] else ReasoningTags("[THINK]", "[/THINK]")


class ReasoningSplitter:
    """One answer. Reasoning comes first or not at all; the line breaks beside the tags belong to them."""

    def __init__(self, tags: ReasoningTags, *, is_open: bool) -> None:
        self._tags = tags
        self._source = TextSource()
        self._events: list[ChatEvent] = []
        self._newlines = ""  # at the end of the reasoning so far; dropped if the tag follows
        self._steps = self._split(is_open)
        next(self._steps, None)

    def push(self, text: str) -> list[ChatEvent]:
        """The deltas of content and reasoning that a further piece of the answer completes."""
        self._source.feed(text)
        next(self._steps, None)
        return self._drain()

    def finish(self) -> list[ChatEvent]:
        """What was held back when the answer ends."""
        self._source.end()
        next(self._steps, None)
        return self._drain()

    def _drain(self) -> list[ChatEvent]:
        events, self._events = self._events, []
        return merge_events(events)

    def _split(self, is_open: bool) -> Steps[None]:
        yield from self._source.skip_space()
        if (yield from self._source.at(self._tags.start)):  # some models repeat the tag that the prompt has opened
            yield from self._drop_newlines()
            yield from self._think()
        elif is_open:
            self._reasoning(self._source.release().lstrip("\n"))
            yield from self._think()
        else:
            self._content(self._source.release())
        yield from self._source.until_any(MarkerSearch(()), self._content)

    def _think(self) -> Steps[None]:
        end = yield from self._source.until_any(MarkerSearch((self._tags.end,)), self._reasoning)
        if end is None and self._newlines:
            self._events.append(ReasoningDelta(self._newlines))
        yield from self._drop_newlines()

    def _drop_newlines(self) -> Steps[None]:
        yield from self._source.run(_NEWLINES)
        self._source.release()

    def _reasoning(self, text: str) -> None:
        text = self._newlines + text
        kept = text.rstrip("\n")
        self._newlines = text[len(kept) :]
        if kept:
            self._events.append(ReasoningDelta(kept))

    def _content(self, text: str) -> None:
        if text:
            self._events.append(ContentDelta(text))
