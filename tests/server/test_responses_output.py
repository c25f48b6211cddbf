"""Items and events of the Responses API: what the official client puts together from a stream is the whole reply."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai import NOT_GIVEN
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from roseinfer.server.responses.reply import ResponseWriter, new_response, usage_fields
from roseinfer.server.schemas.responses import ResponseReply, ResponseRequest
from roseinfer.text.chat_events import ChatEvent, ContentDelta, ReasoningDelta, ToolCallStart
from tests.server.chat_event_strategies import answers

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def new_writer() -> ResponseWriter:
    return ResponseWriter(new_response("resp_1", ResponseRequest.model_validate({"input": "x"}), "m"))


def stream_of(events: list[ChatEvent], *, is_cut: bool = False) -> list[dict[str, Any]]:
    writer = new_writer()
    stream = list(writer.begin())
    for event in events:
        stream += writer.write([event])
    stream += writer.close(is_cut=is_cut)
    return stream + list(writer.end(usage_fields(9, 4, 7, 2), is_cut=is_cut))


def holds(actual: Any, expected: Any) -> bool:
    """Whether all of `expected` is in `actual`, to which the client adds fields of its own."""
    if isinstance(expected, dict):
        return all(name in actual and holds(actual[name], value) for name, value in expected.items())
    if isinstance(expected, list):
        return len(actual) == len(expected) and all(map(holds, actual, expected))
    return bool(actual == expected)


@settings(deadline=None)  # the client builds its models when they are first used
@given(answers(), st.booleans())
def test_a_stream_joins_to_the_whole(events: list[ChatEvent], is_cut: bool) -> None:
    state: Any = ResponseStreamState(input_tools=NOT_GIVEN, text_format=NOT_GIVEN)
    stream = stream_of(events, is_cut=is_cut)
    for event in stream:
        state.handle_event(EVENT.validate_python(event, strict=True))
    final = stream[-1]["response"]
    ResponseReply.model_validate(final)
    whole = Response.model_validate(final)
    assert whole.status == ("incomplete" if is_cut else "completed")
    if not is_cut:
        assert holds(state._completed_response.to_dict(), final)
    assert whole.output_text == "".join(event.text for event in events if isinstance(event, ContentDelta))


@given(answers())
def test_events_are_numbered_and_items_follow_each_other(events: list[ChatEvent]) -> None:
    stream = stream_of(events)
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    assert [event["type"] for event in stream[:2]] == ["response.created", "response.in_progress"]
    assert all(event["response"]["output"] == [] for event in stream[:2])
    added = [event["output_index"] for event in stream if event["type"] == "response.output_item.added"]
    done = [event["output_index"] for event in stream if event["type"] == "response.output_item.done"]
    assert added == done == list(range(len(stream[-1]["response"]["output"])))


def test_a_message_goes_through_all_its_events() -> None:
    types = [event["type"] for event in stream_of([ContentDelta("a"), ContentDelta("b")])]
    assert types == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_only_the_last_item_of_a_cut_answer_is_incomplete() -> None:
    stream = stream_of([ReasoningDelta("r"), ContentDelta("a")], is_cut=True)
    response = stream[-1]["response"]
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None


def test_a_failure_is_the_last_event_and_keeps_what_is_complete() -> None:
    writer = new_writer()
    stream = list(writer.begin()) + list(writer.write([ContentDelta("a"), ToolCallStart(0, "c", "f")]))
    writer.mark_sent()
    last = writer.fail("server_error", "broken")
    EVENT.validate_python(last, strict=True)
    assert (last["type"], last["sequence_number"]) == ("response.failed", len(stream))
    response = last["response"]
    assert (response["status"], response["error"]) == ("failed", {"code": "server_error", "message": "broken"})
    assert [item["type"] for item in response["output"]] == ["message"]


@given(answers(), answers(), st.sampled_from(["more", "closed", "ended"]))
def test_a_failure_knows_nothing_of_what_was_not_sent(
    sent: list[ChatEvent], unsent: list[ChatEvent], state: str
) -> None:
    writer = new_writer()
    stream = list(writer.begin()) + list(writer.write(sent))
    writer.mark_sent()
    expected = writer.fail("server_error", "broken")
    assert expected["sequence_number"] == len(stream)
    closed = [event["item"] for event in stream if event["type"] == "response.output_item.done"]
    assert expected["response"]["output"] == closed
    list(writer.write(unsent))
    if state != "more":
        list(writer.close(is_cut=False))
    if state == "ended":
        list(writer.end(usage_fields(9, 4, 7, 2), is_cut=False))
        assert writer.response["completed_at"] is not None
    assert writer.fail("server_error", "broken") == expected
    assert (expected["response"]["completed_at"], expected["response"]["usage"]) == (None, None)


def test_logprobs_go_with_their_text() -> None:
    writer = new_writer()
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    deltas = [event for event in writer.write([ContentDelta("a")], [entry]) if event["type"].endswith(".delta")]
    deltas += writer.write([ContentDelta("b")], [{**entry, "token": "b"}])
    assert [[logprob["token"] for logprob in delta["logprobs"]] for delta in deltas] == [["a"], ["b"]]
    list(writer.close(is_cut=False))
    part = writer.response["output"][0]["content"][0]
    assert [logprob["token"] for logprob in part["logprobs"]] == ["a", "b"]


def test_what_the_request_says_of_itself_comes_back() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    body = {
        "input": "x",
        "instructions": "Be brief.",
        "max_output_tokens": 5,
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}},
        "user": "u",
        "unheard_of": 1,
    }
    response = new_response("resp_1", ResponseRequest.model_validate(body), "m")
    ResponseReply.model_validate(response)
    assert {name: response[name] for name in ("instructions", "max_output_tokens", "metadata", "temperature")} == {
        name: body[name] for name in ("instructions", "max_output_tokens", "metadata", "temperature")
    }
    assert response["tools"] == [{**tool, "description": None, "strict": False}]
    assert response["tool_choice"] == body["tool_choice"]
    assert response["text"] == body["text"]
    assert response["warnings"] == ["unknown field 'unheard_of' was ignored"]
    parsed = Response.model_validate(response)
    assert parsed.tools[0].type == "function"
