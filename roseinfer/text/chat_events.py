"""What a chat answer consists of, in the order in which it arrives."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call of the function `name`; its arguments follow. Calls are numbered from 0."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


ChatEvent: TypeAlias = ContentDelta | ReasoningDelta | ToolCallStart | ToolCallArguments


def merge_events(events: Iterable[ChatEvent]) -> list[ChatEvent]:
    """The same with neighbouring deltas of one kind joined."""
    merged: list[ChatEvent] = []
    for _, neighbours in itertools.groupby(events, lambda event: (type(event), getattr(event, "index", None))):
        group = list(neighbours)
        first = group[0]
        if isinstance(first, ToolCallStart):
            merged += group
        else:
            merged.append(replace(first, text="".join(getattr(event, "text", "") for event in group)))
    return merged
