"""Bodies of the Responses API → chat requests."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.responses.request import chat_fields
from roseinfer.server.schemas.chat import ChatRequest
from roseinfer.server.schemas.responses import ResponseRequest

TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}", "id": "fc_1", "status": "completed"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}


def fields_of(**body: Any) -> dict[str, Any]:
    """What the chat request gets, which must be a sound one."""
    fields = chat_fields(ResponseRequest.model_validate({"input": "Hello", **body}))
    assert ChatRequest.model_validate(fields).unknown_fields() == []
    return fields


def messages_of(*items: Any) -> Any:
    return fields_of(input=list(items))["messages"]


def said(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def test_the_least_that_a_body_may_say() -> None:
    assert fields_of() == {"messages": [said("user", "Hello")]}


def test_sampling() -> None:
    fields = fields_of(model="m", max_output_tokens=5, temperature=0.5, top_p=0.9, stream=True, user="u")
    assert fields.items() >= {"model": "m", "max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.9}.items()
    assert (fields["stream"], fields["user"]) == (True, "u")


def test_null_means_not_given() -> None:
    names = set(ResponseRequest.model_fields) - {"input"}
    assert fields_of(**dict.fromkeys(names)) == fields_of()


def test_instructions_come_first() -> None:
    messages = fields_of(instructions="Be brief.")["messages"]
    assert messages == [said("system", "Be brief."), said("user", "Hello")]


@pytest.mark.parametrize("role", ["user", "system", "developer", "assistant"])
@pytest.mark.parametrize("kind", [{}, {"type": "message"}])
def test_messages(role: str, kind: dict[str, str]) -> None:
    part = {"type": "output_text" if role == "assistant" else "input_text", "text": "a"}
    assert messages_of(said(role, "a", **kind), said("user", "b")) == [said(role, "a"), said("user", "b")]
    assert messages_of(said(role, [part], **kind)) == [said(role, "a")]
    parts = [{"type": "text", "text": "a"}] * 2
    assert messages_of(said(role, [part, part], **kind)) == [said(role, parts)]


def test_an_answer_goes_back_as_one_turn() -> None:
    message = {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        **said("assistant", [{"type": "output_text", "text": "Wait.", "annotations": [], "logprobs": []}]),
    }
    assert messages_of(said("user", "x"), REASONING, message, CALL, {**CALL, "call_id": "c2"}, OUTPUT) == [
        said("user", "x"),
        said("assistant", "Wait.", reasoning_content="Hm", tool_calls=[CALLED, {**CALLED, "id": "c2"}]),
        {"role": "tool", "tool_call_id": "c1", "content": "42", "name": "f"},
    ]


def test_what_follows_an_answer_is_another_turn() -> None:
    assert messages_of(said("assistant", "a"), said("assistant", "b")) == [
        said("assistant", "a"),
        said("assistant", "b"),
    ]
    first, second = messages_of(CALL, REASONING)
    assert (list(first), list(second)) == (["role", "tool_calls"], ["role", "reasoning_content"])


def test_a_summary_stands_in_for_reasoning() -> None:
    summary = [{"type": "summary_text", "text": "In short"}]
    messages = messages_of({"type": "reasoning", "id": "r", "summary": summary}, said("assistant", "a"))
    assert messages == [said("assistant", "a", reasoning_content="In short")]


def test_a_refusal_is_text() -> None:
    assert messages_of(said("assistant", [{"type": "refusal", "refusal": "No."}])) == [said("assistant", "No.")]


def test_tools() -> None:
    fields = fields_of(tools=[TOOL], tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False)
    function = {name: TOOL[name] for name in ("name", "description", "parameters", "strict")}
    assert fields["tools"] == [{"type": "function", "function": function}]
    assert fields["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert fields["parallel_tool_calls"] is False
    assert fields_of(tools=[TOOL], tool_choice="required")["tool_choice"] == "required"


def test_only_allowed_tools_are_shown() -> None:
    def allow(name: str) -> dict[str, Any]:
        return {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": name}]}

    fields = fields_of(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=allow("g"))
    assert [tool["function"]["name"] for tool in fields["tools"]] == ["g"]
    assert fields["tool_choice"] == "required"
    with pytest.raises(InvalidRequestError, match="'h'"):
        fields_of(tools=[TOOL], tool_choice=allow("h"))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"type": "text"}, {"type": "text"}),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True},
            {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}},
        ),
    ],
)
def test_formats(wanted: Any, expected: Any) -> None:
    assert fields_of(text={"format": wanted, "verbosity": "medium"})["response_format"] == expected


def test_reasoning_and_logprobs() -> None:
    assert fields_of(reasoning={"effort": "low", "summary": "auto"})["reasoning_effort"] == "low"
    fields = fields_of(include=["message.output_text.logprobs"], top_logprobs=3)
    assert (fields["logprobs"], fields["top_logprobs"]) == (True, 3)
    assert fields_of(include=["message.output_text.logprobs"])["top_logprobs"] == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": None}, ["input"]),
        ({"input": []}, ["input"]),
        ({"input": [7]}, ["input", "object"]),
        ({"input": [{"type": "item_reference", "id": "x"}]}, ["'item_reference'"]),
        ({"input": [{"type": "x" * 1000}]}, ["'xxx"]),
        ({"input": [said("user", [{"type": "input_image", "image_url": "x"}])]}, ["'input_image'"]),
        ({"input": [{**OUTPUT, "output": [{"type": "input_file"}]}]}, ["'input_file'"]),
        ({"input": [{**REASONING, "encrypted_content": "x"}]}, ["encrypted_content"]),
        ({"tools": [{"type": "web_search"}]}, ["tools.0", "'web_search'"]),
        ({"tool_choice": "any"}, ["tool_choice"]),
        ({"tool_choice": {"type": "web_search"}}, ["tool_choice"]),
        ({"text": {"format": {"type": "xml"}}}, ["format"]),
        ({"text": {"verbosity": "low"}}, ["verbosity"]),
        ({"reasoning": {"summary": "detailed"}}, ["summary"]),
        ({"include": ["file_search_call.results"]}, ["include"]),
        ({"top_logprobs": 3}, ["top_logprobs"]),
        ({"stream_options": {"include_obfuscation": False}}, ["stream_options"]),
        ({"store": True}, ["store"]),
        ({"background": True}, ["background"]),
        ({"truncation": "auto"}, ["truncation"]),
        ({"previous_response_id": "resp_1"}, ["previous_response_id"]),
        ({"conversation": "c"}, ["conversation"]),
        ({"prompt": {"id": "p"}}, ["prompt"]),
        ({"metadata": {"k": "v" * 513}}, ["metadata"]),
        ({"max_output_tokens": 0}, ["max_output_tokens"]),
        ({"temperature": 2.5}, ["temperature"]),
    ],
)
def test_what_cannot_be_done_is_named(body: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        fields_of(**body)
    problem = caught.value.errors()[0]
    told = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    assert all(word in told for word in words), told
    assert len(told) < 300


def test_encrypted_reasoning_is_taken_with_a_warning() -> None:
    body = ResponseRequest.model_validate({"input": "Hello", "include": ["reasoning.encrypted_content"]})
    assert not body.wants_logprobs
    assert body.warnings() == ["include: there is no reasoning.encrypted_content, reasoning is told in the open"]
