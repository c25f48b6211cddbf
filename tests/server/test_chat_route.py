"""`POST /v1/chat/completions`: answers, streams, tools, reasoning, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.answering import TEMPLATE, THINKING_TEMPLATE, AnsweringProgram
from tests.server.live import LiveServer, StartServer, assert_error, serving

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
ANSWER = "Good mörning 😀!"
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "the sky"}}\n</tool_call>'
LOOK: Any = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}}
TOOLS: Any = {"messages": HELLO, "tools": [LOOK], "temperature": 0}


@pytest.fixture(scope="module")
def chatty() -> Iterator[LiveServer]:
    with serving(program=AnsweringProgram(ANSWER), chat_template=TEMPLATE) as live:
        yield live


@pytest.fixture
def start_chat(start_server: StartServer) -> Any:
    def start(script: str, template: str = TEMPLATE) -> LiveServer:
        return start_server(program=AnsweringProgram(script), chat_template=template)

    return start


def message_of(events: list[Any], index: int = 0) -> dict[str, Any]:
    """A streamed message put together as clients do."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "calls": []}
    for event in events:
        for choice in event["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            message["content"] += delta.get("content", "")
            message["reasoning"] += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] == len(message["calls"])
                    message["calls"].append({"name": call["function"]["name"], "arguments": ""})
                message["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            message["finish_reason"] = choice["finish_reason"]
    return message


def test_the_shape_of_a_reply(chatty: LiveServer) -> None:
    reply = chatty.chat(messages=HELLO)
    body = reply.json()
    assert reply.status_code == 200, body
    assert body["id"] == "chatcmpl-" + reply.headers["x-request-id"]
    assert (body["object"], body["model"]) == ("chat.completion", "fake")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    num_prompt_tokens = len("user: Hello\nassistant: ")
    num_tokens = len(ANSWER.encode()) + 1  # the end of the text counts
    assert body["usage"]["prompt_tokens"] == num_prompt_tokens
    assert body["usage"]["completion_tokens"] == num_tokens
    assert body["usage"]["total_tokens"] == num_prompt_tokens + num_tokens


def test_the_chunks_of_a_stream(chatty: LiveServer) -> None:
    events = chatty.events(CHAT, messages=HELLO, n=2, foo=1, stream_options={"include_usage": True})
    *chunks, last = events
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert choices[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
        assert message_of(events, index)["content"] == ANSWER
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in events}) == 1
    assert events[0]["object"] == "chat.completion.chunk"
    assert events[0]["warnings"] == ["unknown field 'foo' was ignored"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert [("timings" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2 * (len(ANSWER.encode()) + 1)


def test_null_means_not_given(chatty: LiveServer) -> None:
    schema = chatty.client.get("/openapi.json").json()["components"]["schemas"]["ChatRequest"]["properties"]
    reply = chatty.chat(messages=HELLO, **dict.fromkeys(name for name in schema if name != "messages"))
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_by_both_names(chatty: LiveServer, name: str) -> None:
    body = chatty.chat(messages=HELLO, **{name: 4}).json()
    assert body["choices"][0]["message"]["content"] == ANSWER[:4]
    assert body["choices"][0]["finish_reason"] == "length"
    message = assert_error(chatty.chat(messages=HELLO, **{name: 500}), 400, param=name, code="context_length_exceeded")
    assert "500" in message


def test_messages_may_have_parts(chatty: LiveServer) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    body = {"messages": [{"role": "developer", "content": "Be"}, {"role": "user", "content": parts}]}
    rendered = chatty.client.post(CHAT + "/render", json=body).json()
    assert rendered["prompt"] == "developer: Be\nuser: Hel\nlo\nassistant: "


def test_rendering(chatty: LiveServer) -> None:
    reply = chatty.client.post(CHAT + "/render", json={"messages": HELLO, "foo": 1}).json()
    prompt = "user: Hello\nassistant: "
    assert reply == {
        "prompt": prompt,
        "prompt_token_ids": list(prompt.encode()),
        "count": len(prompt),
        "max_model_len": 512,
        "warnings": ["unknown field 'foo' was ignored"],
    }
    continued = [*HELLO, {"role": "assistant", "content": "Go"}]
    for options in ({"continue_final_message": True}, {"continue_final_message": True, "add_generation_prompt": False}):
        reply = chatty.client.post(CHAT + "/render", json={"messages": continued, **options}).json()
        assert reply["prompt"] == "user: Hello\nassistant: Go"


def test_variables_reach_the_template(start_chat: Any) -> None:
    server = start_chat("x", "{{ mood }}{% if enable_thinking %} thinks{% endif %}")
    for options, prompt in [
        ({"chat_template_kwargs": {"mood": "gay"}}, "gay"),
        ({"reasoning_effort": "low"}, " thinks"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"mood": "sad"}}, "sad"),
    ]:
        assert server.client.post(CHAT + "/render", json={"messages": HELLO, **options}).json()["prompt"] == prompt


def test_logprobs(chatty: LiveServer) -> None:
    options = {"messages": HELLO, "logprobs": True, "top_logprobs": 2, "return_token_ids": True, "max_tokens": 8}
    reply = chatty.chat(**options).json()
    (choice,) = reply["choices"]
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == ANSWER.encode()[:8]
    assert [entry["bytes"] for entry in entries] == [entry["top_logprobs"][0]["bytes"] for entry in entries]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert choice["token_ids"] == list(ANSWER.encode()[:8])
    assert reply["prompt_token_ids"] == list(b"user: Hello\nassistant: ")
    events = chatty.events(CHAT, **options)
    parts = [part for event in events for part in event["choices"]]
    assert [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]] == entries
    assert [token_id for part in parts for token_id in part["token_ids"]] == choice["token_ids"]


def test_prompt_logprobs(chatty: LiveServer) -> None:
    reply = chatty.chat(messages=HELLO, prompt_logprobs=0, max_tokens=1).json()
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    assert reply["prompt_logprobs"][0] is None


# -- tools and reasoning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "Let me see. "])
def test_calls(start_chat: Any, before: str) -> None:
    server = start_chat(before + CALL + "\n" + CALL)
    (choice,) = server.chat(**TOOLS).json()["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert (message["content"] or "").strip() == before.strip()
    assert (message["content"] is None) == (not before)
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    for call in message["tool_calls"]:
        assert call["type"] == "function"
        assert call["function"]["name"] == "look"
        assert json.loads(call["function"]["arguments"]) == {"at": "the sky"}


def test_calls_in_a_stream(start_chat: Any) -> None:
    server = start_chat(CALL + "\n" + CALL)
    whole = server.chat(**TOOLS).json()["choices"][0]["message"]["tool_calls"]
    events = server.events(CHAT, **TOOLS)
    message = message_of(events)
    assert message["calls"] == [call["function"] for call in whole]
    assert message["finish_reason"] == "tool_calls"
    assert not message["content"]
    first = next(c["delta"]["tool_calls"][0] for e in events for c in e["choices"] if "tool_calls" in c["delta"])
    assert first["index"] == 0
    assert first["type"] == "function"
    assert first["id"].startswith("call_")
    assert first["function"] == {"name": "look", "arguments": ""}


def test_one_call_if_not_parallel(start_chat: Any) -> None:
    server = start_chat(CALL + "\n" + CALL)
    message = server.chat(**TOOLS, parallel_tool_calls=False).json()["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


def test_tool_choice_none_hides_the_tools(start_chat: Any) -> None:
    server = start_chat(CALL)
    reply = server.chat(**TOOLS, tool_choice="none").json()
    assert reply["choices"][0]["message"]["content"] == CALL
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["prompt_tokens"] == len("user: Hello\nassistant: ")


def test_tools_without_a_dialect(start_chat: Any) -> None:
    server = start_chat("x", "{{ messages[0].content }}:")
    assert "tools" in assert_error(server.chat(**TOOLS), 400, param="tools")
    assert server.chat(**TOOLS, tool_choice="none").status_code == 200


def test_a_conversation_with_a_call(chatty: LiveServer) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "call_1", "content": "blue"},
    ]
    reply = chatty.chat(messages=messages, tools=[LOOK])
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize("is_streamed", [False, True])
def test_reasoning_is_told_apart(start_chat: Any, is_streamed: bool) -> None:
    server = start_chat("<think>\nHm.\n</think>\n\nYes.", THINKING_TEMPLATE)
    if is_streamed:
        message = message_of(server.events(CHAT, messages=HELLO))
        assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
    else:
        message = server.chat(messages=HELLO).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")


# -- refusals -----------------------------------------------------------------------------------------------

NAMED = {"type": "function", "function": {"name": "listen"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["a"]}, "messages.0"),
    ({"messages": [{"role": "function", "content": "a", "name": "b"}]}, "messages.0"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id"),
    ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"chat_template": "x"}, "chat_template"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"tools": [LOOK, LOOK]}, "tools"),
    ({"tools": [LOOK] * 129}, "tools"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tools": [LOOK], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [LOOK], "tool_choice": NAMED}, "tool_choice"),
    ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}}, "response_format.json_schema.name"),
    ({"audio": {}}, "audio"),
    ({"modalities": ["audio"]}, "modalities.0"),
    ({"prediction": {"type": "content", "content": "a"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"store": True}, "store"),
    ({"verbosity": "low"}, "verbosity"),
    ({"functions": []}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"moderation": {}}, "moderation"),
    ({"stream_options": {}}, "stream_options"),
    ({"n": 2.0}, "n"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=[param + str(i) for i, (_, param) in enumerate(REFUSED)])
def test_refusals_name_the_field(chatty: LiveServer, fields: dict[str, Any], param: str) -> None:
    assert_error(chatty.chat(**{"messages": HELLO, **fields}), 400, param=param)


def test_harmless_values_are_taken(chatty: LiveServer) -> None:
    harmless = {
        "modalities": ["text"],
        "service_tier": "auto",
        "store": False,
        "verbosity": "medium",
        "user": "me",
        "metadata": {"a": "b"},
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "stream": False,
        "reasoning_effort": "none",
    }
    reply = chatty.chat(messages=HELLO, **harmless)
    assert reply.status_code == 200, reply.text
    assert "warnings" not in reply.json()


def test_a_deep_schema_is_refused(chatty: LiveServer) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"properties": deep}
    tool = {"type": "function", "function": {"name": "a", "parameters": deep}}
    assert "32" in assert_error(chatty.chat(messages=HELLO, tools=[tool]), 400, param="tools.0.function.parameters")


def test_a_long_chat_does_not_fit(chatty: LiveServer) -> None:
    messages = [{"role": "user", "content": "a" * 600}]
    assert_error(chatty.chat(messages=messages), 400, param="messages", code="context_length_exceeded")


def test_a_model_without_a_template(server: LiveServer) -> None:
    assert "fake" in assert_error(server.chat(messages=HELLO), 400, param="messages", code="chat_template_missing")


def test_another_model_is_not_found(chatty: LiveServer) -> None:
    assert_error(chatty.chat(messages=HELLO, model="x"), 404, param="model", code="model_not_found")


def test_unknown_fields_are_named_wherever_they_are(chatty: LiveServer) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "hi", "colour": 1}], "mood": 2}
    reply = chatty.client.post("/v1/chat/completions", json={"messages": [message], "max_tokens": 1, "bar": 3})
    names = ["bar", "messages.0.mood", "messages.0.content.0.colour"]
    assert sorted(reply.json()["warnings"]) == sorted(f"unknown field {name!r} was ignored" for name in names)
