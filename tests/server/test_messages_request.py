"""Bodies of Anthropic's clients → chat requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.anthropic.request import chat_fields, prompt_fields
from roseinfer.server.schemas.anthropic import CountTokensRequest, MessagesRequest
from roseinfer.server.schemas.chat import ChatRequest

HELLO = {"role": "user", "content": "Hello"}
WEATHER = {"name": "weather", "description": "Of a city", "input_schema": {"type": "object"}}


def fields_of(**body: Any) -> dict[str, Any]:
    """What the chat request gets, which must be a sound one."""
    given = {"model": "m", "max_tokens": 5, "messages": [HELLO], **body}
    fields = chat_fields(MessagesRequest.model_validate(given))
    assert ChatRequest.model_validate(fields).unknown_fields() == []
    return fields


def messages_of(*messages: Any, **body: Any) -> Any:
    return fields_of(messages=list(messages), **body)["messages"]


def problem_of(**body: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        fields_of(**body)
    problem = caught.value.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_the_least_that_a_body_may_say() -> None:
    assert fields_of() == {"model": "m", "max_completion_tokens": 5, "messages": [HELLO]}


def test_sampling() -> None:
    fields = fields_of(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        stop_sequences=["END"],
        stream=True,
        metadata={"user_id": "u"},
        service_tier="auto",
    )
    assert fields.items() >= {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stream": True, "user": "u"}.items()
    assert fields["stop"] == ["END"]


@pytest.mark.parametrize("system", ["Be brief.", [{**text("Be brief."), "cache_control": {"type": "ephemeral"}}]])
def test_system_comes_first(system: Any) -> None:
    assert messages_of(HELLO, system=system) == [{"role": "system", "content": "Be brief."}, HELLO]


def test_several_texts_are_parts() -> None:
    parts = [text("a"), text("b")]
    assert messages_of(user(*parts), system=parts) == [
        {"role": "system", "content": parts},
        {"role": "user", "content": parts},
    ]


def test_turns_of_one_role_are_joined() -> None:
    assert messages_of(HELLO, user(text("you"))) == [{"role": "user", "content": [text("Hello"), text("you")]}]


def test_a_system_turn_among_the_others_stays_there() -> None:
    note = {"role": "system", "content": "Now in French."}
    assert messages_of(HELLO, note, HELLO) == [HELLO, note, HELLO]


def test_a_call_and_its_result() -> None:
    call = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Zürich"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "rain"}
    messages = messages_of(
        HELLO,
        assistant({"type": "thinking", "thinking": "Hm", "signature": ""}, text("Wait."), call),
        user(result, text("Thanks")),
    )
    assert messages[1] == {
        "role": "assistant",
        "content": "Wait.",
        "reasoning_content": "Hm",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
        ],
    }
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "c1", "content": "rain", "name": "weather"},
        {"role": "user", "content": "Thanks"},
    ]


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({}, ""),
        ({"content": [text("a"), text("b")]}, [text("a"), text("b")]),
        ({"content": "no such city", "is_error": True}, "Error: no such city"),
        ({"content": [text("a"), text("b")], "is_error": True}, [text("Error: a"), text("b")]),
        ({"is_error": True}, "Error"),
        ({"content": "fine", "is_error": False}, "fine"),
    ],
)
def test_results_of_tools(fields: dict[str, Any], content: Any) -> None:
    (message,) = messages_of(user({"type": "tool_result", "tool_use_id": "c9", **fields}))
    assert message == {"role": "tool", "tool_call_id": "c9", "content": content}


def test_thinking_that_nobody_can_read_is_left_out() -> None:
    messages = messages_of(HELLO, assistant({"type": "redacted_thinking", "data": "xyz"}, text("a")), HELLO)
    assert messages[1] == {"role": "assistant", "content": "a"}


def test_empty_content_is_an_empty_turn() -> None:
    assert messages_of(user()) == [{"role": "user", "content": ""}]


def test_a_last_turn_of_the_assistant_is_gone_on_with() -> None:
    fields = fields_of(messages=[HELLO, assistant(text("The answer is ("))])
    assert (fields["add_generation_prompt"], fields["continue_final_message"]) == (False, True)
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    with pytest.raises(InvalidRequestError, match="ends with a turn of the assistant"):
        fields_of(messages=[HELLO, assistant(call)])


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "weather"}, {"tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        ({"type": "auto", "disable_parallel_tool_use": False}, {"tool_choice": "auto"}),
    ],
)
def test_tools(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    fields = fields_of(tools=[{**WEATHER, "strict": True, "type": "custom"}], tool_choice=choice)
    function = {"name": "weather", "description": "Of a city", "parameters": {"type": "object"}, "strict": True}
    assert fields["tools"] == [{"type": "function", "function": function}]
    assert {name: fields[name] for name in ("tool_choice", "parallel_tool_calls") if name in fields} == expected


@pytest.mark.parametrize(
    ("thinking", "kwargs"),
    [
        ({"type": "enabled", "budget_tokens": 2048}, {"enable_thinking": True}),
        ({"type": "disabled"}, {"enable_thinking": False}),
        ({"type": "adaptive"}, None),
        (None, None),
    ],
)
def test_thinking(thinking: Any, kwargs: Any) -> None:
    assert fields_of(thinking=thinking).get("chat_template_kwargs") == kwargs


def test_a_thinking_budget_is_no_promise() -> None:
    thinking = {"type": "enabled", "budget_tokens": 2048}
    body = {"model": "m", "max_tokens": 5, "messages": [HELLO], "thinking": thinking, "strange": 1}
    unknown, budget = MessagesRequest.model_validate(body).warnings() or []
    assert "strange" in unknown
    assert "budget_tokens" in budget


def test_output_config() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    fields = fields_of(output_config={"effort": "max", "format": {"type": "json_schema", "schema": schema}})
    assert fields["reasoning_effort"] == "xhigh"
    assert fields["response_format"]["json_schema"]["schema"] == schema
    assert fields_of(output_config={"effort": "low"})["reasoning_effort"] == "low"


def test_counting_needs_only_what_makes_the_prompt() -> None:
    body = CountTokensRequest.model_validate({"model": "m", "messages": [HELLO], "tools": [WEATHER], "system": "s"})
    assert list(prompt_fields(body)) == ["model", "messages", "tools"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [user({"type": "image", "source": {}})]}, ["messages.0", "'image'"]),
        ({"messages": [user({"type": "document", "source": {}})]}, ["'document'"]),
        ({"messages": [user({"type": "x" * 1000})]}, ["'xxx"]),
        (
            {"messages": [user({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "image"}]})]},
            ["'image'"],
        ),
        ({"messages": [user({"type": "tool_use", "id": "c", "name": "f", "input": {}})]}, ["tool_use", "user"]),
        ({"messages": [assistant({"type": "tool_result", "tool_use_id": "c"})]}, ["tool_result", "assistant"]),
        ({"messages": [user(7)]}, ["None"]),
        ({"messages": []}, ["messages"]),
        ({"messages": [{"role": "tool", "content": "x"}]}, ["role"]),
        ({"messages": [{"role": "user", "content": None}]}, ["content"]),
        ({"system": [{"type": "image"}]}, ["system", "'image'"]),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, ["tools.0", "'web_search_20250305'"]),
        ({"tools": [{**WEATHER, "input_examples": [{}]}]}, ["input_examples"]),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, ["defer_loading"]),
        ({"tool_choice": {"type": "maybe"}}, ["tool_choice"]),
        ({"tool_choice": {"type": "tool"}}, ["tool_choice", "name"]),
        ({"thinking": {"type": "enabled"}}, ["budget_tokens"]),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, ["display"]),
        ({"temperature": 1.5}, ["temperature"]),
        ({"max_tokens": 0}, ["max_tokens"]),
        ({"max_tokens": None}, ["max_tokens"]),
        ({"stop_sequences": ["a"] * 5}, ["stop_sequences"]),
        ({"container": "c"}, ["container"]),
        ({"mcp_servers": [{}]}, ["mcp_servers"]),
        ({"speed": "fast"}, ["speed"]),
        ({"model": None}, ["model"]),
    ],
)
def test_what_cannot_be_done_is_named(body: dict[str, Any], words: list[str]) -> None:
    problem = problem_of(**body)
    assert all(word in problem for word in words), problem
    assert len(problem) < 300


def test_input_of_calls_is_kept_as_it_is() -> None:
    given = {"a": [1, {"b": None}], "ü": "😀"}
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": given}
    messages = messages_of(HELLO, assistant(call), user({"type": "tool_result", "tool_use_id": "c1"}))
    assert json.loads(messages[1]["tool_calls"][0]["function"]["arguments"]) == given
