"""Answers of chats for Hypothesis: events as parsers make them, cut into deltas at random."""

from __future__ import annotations

import itertools
import json

from hypothesis import strategies as st

from roseinfer.text.chat_events import ChatEvent, ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_ARGUMENTS = st.dictionaries(_TEXT, _TEXT | st.integers() | st.lists(st.booleans(), max_size=2), max_size=3)


@st.composite
def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=3)) | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(cuts) if start < end]


@st.composite
def answers(draw: st.DrawFn) -> list[ChatEvent]:
    """Reasoning first if at all, then content and calls in any order."""
    events: list[ChatEvent] = []
    if draw(st.booleans()):
        events += [ReasoningDelta(piece) for piece in draw(_pieces(draw(_TEXT)))]
    num_calls = 0
    for is_call in draw(st.lists(st.booleans(), max_size=4)):
        if not is_call:
            events += [ContentDelta(piece) for piece in draw(_pieces(draw(_TEXT)))]
            continue
        arguments = json.dumps(draw(_ARGUMENTS))
        events.append(ToolCallStart(num_calls, f"call_{num_calls}", draw(st.sampled_from(["f", "g"]))))
        events += [ToolCallArguments(num_calls, piece) for piece in draw(_pieces(arguments))]
        num_calls += 1
    return events
