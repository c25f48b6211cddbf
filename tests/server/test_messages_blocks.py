"""Anthropic's content: what the official client puts together from a stream is what a whole reply holds."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from pydantic import TypeAdapter

from roseinfer.server.anthropic.blocks import BlockEvents, content_of
from roseinfer.server.anthropic.reply import closing_events, new_message, stop_fields, usage_fields
from roseinfer.text.chat_events import ChatEvent, ContentDelta, ToolCallArguments, ToolCallStart
from tests.server.chat_event_strategies import answers

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def stream_of(events: list[ChatEvent]) -> list[dict[str, Any]]:
    """All events of a stream, the deltas one by one."""
    start = {"type": "message_start", "message": new_message("msg_1", "m", usage_fields(9, 4, 0), None)}
    writer = BlockEvents()
    content = [event for delta in events for event in writer.write([delta])]
    stop = stop_fields("stop", None, (), has_tool_calls=False)
    return [start, *content, *writer.close(), *closing_events(stop, usage_fields(9, 4, 7), {})]


def accumulate(stream: list[dict[str, Any]]) -> Any:
    message, buffers = None, {}
    for event in stream:
        parsed = EVENT.validate_python(event)
        message = accumulate_event(event=parsed, current_snapshot=message, json_bufs=buffers)
    return message


@settings(deadline=None)  # the client builds its models when they are first used
@given(answers())
def test_a_stream_joins_to_the_whole(events: list[ChatEvent]) -> None:
    message = accumulate(stream_of(events))
    whole = {**new_message("msg_1", "m", usage_fields(9, 4, 7), None), "content": content_of(events)}
    assert message.stop_reason == "end_turn"
    assert message.usage.to_dict() == whole["usage"]
    blocks = Message.model_validate(whole).content
    assert [block.to_dict() for block in message.content] == [block.to_dict() for block in blocks]


@given(answers())
def test_blocks_open_and_close_in_order(events: list[ChatEvent]) -> None:
    num_open, index = 0, -1
    for event in stream_of(events)[1:-2]:
        if event["type"] == "content_block_start":
            num_open, index = num_open + 1, index + 1
        assert (num_open, event["index"]) == (1, index)
        if event["type"] == "content_block_stop":
            num_open -= 1
    assert num_open == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ("{}", {}),
        ('{"a": 1', {"a": 1}),
        ('{"a": 1, "b": "Par', {"a": 1}),
        ("[1]", {}),
        ("{,", {}),
        ("nonsense", {}),
    ],
)
def test_arguments_that_were_cut_are_what_is_complete_of_them(arguments: str, expected: dict[str, Any]) -> None:
    content = content_of([ToolCallStart(0, "c", "f"), ToolCallArguments(0, arguments)])
    assert content == [{"type": "tool_use", "id": "c", "name": "f", "input": expected}]


def test_an_empty_answer_has_no_blocks() -> None:
    assert content_of([]) == []
    assert [event["type"] for event in stream_of([])] == ["message_start", "message_delta", "message_stop"]


def test_two_calls_are_two_blocks() -> None:
    calls: list[ChatEvent] = [ToolCallStart(0, "a", "f"), ToolCallStart(1, "b", "f"), ContentDelta("!")]
    assert [block["type"] for block in content_of(calls)] == ["tool_use", "tool_use", "text"]
    message = accumulate(stream_of(calls))
    assert [block.type for block in message.content] == ["tool_use", "tool_use", "text"]


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason", "has_tool_calls", "expected"),
    [
        ("stop", None, False, ("end_turn", None)),
        ("stop", None, True, ("tool_use", None)),
        ("length", None, True, ("max_tokens", None)),
        ("stop", "END", False, ("stop_sequence", "END")),
        ("stop", "END", True, ("stop_sequence", "END")),
        ("stop", "other", False, ("end_turn", None)),
        ("stop", 7, False, ("end_turn", None)),
    ],
)
def test_stop_reasons(
    finish_reason: str, stop_reason: int | str | None, has_tool_calls: bool, expected: tuple[str, str | None]
) -> None:
    stop = stop_fields(finish_reason, stop_reason, ["END"], has_tool_calls=has_tool_calls)
    assert (stop["stop_reason"], stop["stop_sequence"]) == expected


def test_warnings_are_part_of_the_message_if_there_are_any() -> None:
    assert new_message("i", "m", {}, ["w"])["warnings"] == ["w"]
    assert "warnings" not in new_message("i", "m", {}, None)
