"""`/v1/messages` as Anthropic's own client uses it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from roseinfer.server.schemas.anthropic import AnthropicErrorReply, CountTokensReply, MessageReply
from tests.server.scripted import PROMPT, ScriptedServer, serving_script

HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
ASK: Any = {"model": "scripted", "max_tokens": 200, "messages": HELLO}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with serving_script() as live:
        yield live


@pytest.fixture(scope="module")
def client(server: ScriptedServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


def final_of(client: anthropic.Anthropic, **body: Any) -> Any:
    with client.messages.stream(**{**ASK, **body}) as stream:
        return stream.get_final_message()


def test_a_message(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    server.say("Grüezi!")
    message = client.messages.create(**ASK)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Grüezi!", "citations": None}]
    assert (message.role, message.model, message.type) == ("assistant", "scripted", "message")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == len(PROMPT)
    assert usage.output_tokens == len("Grüezi!".encode()) + 1
    assert usage.cache_creation_input_tokens == 0


def test_cached_tokens_are_told_apart(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    server.say("Yes")
    messages: Any = [{"role": "user", "content": "To be remembered. " * 4}]
    first, second = (client.messages.create(**{**ASK, "messages": messages}).usage for _ in range(2))
    assert (first.cache_read_input_tokens, first.output_tokens) == (0, 4)
    assert (second.cache_read_input_tokens or 0) >= 64
    assert second.input_tokens + (second.cache_read_input_tokens or 0) == first.input_tokens


@pytest.mark.parametrize(
    "script",
    ["Grüezi 😀!", "", "<think>Hm.\nWell</think>\n\nYes", f"One moment. {CALL}", f"<think>Hm</think>{CALL}\n{CALL}"],
)
def test_streamed_is_what_is_not_streamed(server: ScriptedServer, client: anthropic.Anthropic, script: str) -> None:
    server.say(script)
    whole = client.messages.create(**ASK, tools=[WEATHER]).to_dict()
    server.program.step_seconds = 0.001
    streamed = final_of(client, tools=[WEATHER]).to_dict()
    for message in (whole, streamed):
        content: Any = message["content"]
        for block in content:
            block.pop("parsed_output", None)
            if block["type"] == "tool_use":
                assert block.pop("id").startswith("call_")
    assert streamed["content"] == whole["content"]
    assert streamed["stop_reason"] == whole["stop_reason"] == ("tool_use" if CALL in script else "end_turn")
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"] == len(script.encode()) + 1  # type: ignore[index]


def test_the_client_sees_text_as_it_comes(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    server.say("Grüezi mitenand")
    server.program.step_seconds = 0.002
    with client.messages.stream(**ASK) as stream:
        pieces = list(stream.text_stream)
    assert "".join(pieces) == "Grüezi mitenand"
    assert len(pieces) > 3


def test_events_are_named_and_in_order(server: ScriptedServer, http: httpx.Client) -> None:
    server.say("<think>a</think>b")
    reply = http.post("/v1/messages", json={**ASK, "stream": True})
    assert reply.headers["content-type"] == "text/event-stream"
    events = [event.split("\n") for event in reply.text.rstrip("\n").split("\n\n")]
    assert all(json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ") for name, data in events)
    names = [name.removeprefix("event: ") for name, _ in events]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert list(dict.fromkeys(names)) == ["message_start", *block, "message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") == 2


def test_async(server: ScriptedServer) -> None:
    async def ask() -> tuple[Any, Any, int]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="k", max_retries=0) as client:
            whole = await client.messages.create(**ASK)
            async with client.messages.stream(**ASK) as stream:
                streamed = await stream.get_final_message()
            counted = await client.messages.count_tokens(model="scripted", messages=HELLO)
            return whole, streamed, counted.input_tokens

    server.say("Hi")
    whole, streamed, count = asyncio.run(ask())
    assert whole.content[0].text == streamed.content[0].text == "Hi"
    assert count == len(PROMPT)


def test_a_call_and_its_result(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    server.say(f"<think>Hm</think>{CALL}")
    message = client.messages.create(**ASK, tools=[WEATHER])
    thinking, call = message.content
    assert thinking.type == "thinking"
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("weather", {"city": "Zürich"})
    server.say("It rains.")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    messages: Any = [*HELLO, message.to_param(), {"role": "user", "content": [result]}]
    answer = client.messages.create(**{**ASK, "messages": messages}, tools=[WEATHER])
    assert answer.content[0].to_dict()["text"] == "It rains."
    counted = client.messages.count_tokens(model="scripted", messages=messages, tools=[WEATHER])
    usage = answer.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_stopping(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    server.say("one two three")
    for ask in (client.messages.create, lambda **body: final_of(client, **body)):
        stopped = ask(**ASK, stop_sequences=["x", " three"])
        assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == (
            "one two",
            "stop_sequence",
            " three",
        )
        cut = ask(**{**ASK, "max_tokens": 3})
        assert (cut.content[0].text, cut.stop_reason, cut.usage.output_tokens) == ("one", "max_tokens", 3)


def test_a_call_that_was_cut_holds_what_is_complete(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    begun = '<tool_call>\n{"name": "weather", "arguments": {"day": 1, "city": "Zü'
    server.say(begun + 'rich"}}\n</tool_call>')
    body = {"max_tokens": len(begun.encode()), "tools": [WEATHER]}
    for message in (client.messages.create(**{**ASK, **body}), final_of(client, **body)):
        assert message.stop_reason == "max_tokens"
        assert message.content[0].input == {"day": 1}


def test_a_prefilled_answer_is_gone_on_with(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    server.say("B)")
    messages: Any = [*HELLO, {"role": "assistant", "content": "It is ("}]
    assert client.messages.create(**{**ASK, "messages": messages}).content[0].to_dict()["text"] == "B)"
    counted = client.messages.count_tokens(model="scripted", messages=messages)
    assert counted.input_tokens == len("user: Hello;assistant: It is (")


def test_thinking_can_be_switched_off(client: anthropic.Anthropic) -> None:
    counts = [
        client.messages.count_tokens(model="scripted", messages=HELLO, thinking=thinking).input_tokens
        for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}, {"type": "disabled"})
    ]
    assert counts[0] == counts[1] == counts[2] - len("<think></think>")


def test_replies_are_as_documented(server: ScriptedServer, http: httpx.Client) -> None:
    server.say(f"<think>Hm</think>Well {CALL}")
    reply = http.post("/v1/messages", json={**ASK, "tools": [WEATHER], "strange": 1})
    message = MessageReply.model_validate_json(reply.content)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.warnings == ["unknown field 'strange' was ignored"]
    reply = http.post("/v1/messages/count_tokens", json={"model": "scripted", "messages": HELLO, "max_tokens": 5})
    assert CountTokensReply.model_validate_json(reply.content).warnings is not None


# -- what goes wrong ----------------------------------------------------------------------------------------


def told(reply: httpx.Response, status: int, kind: str) -> str:
    assert reply.status_code == status, reply.text
    error = AnthropicErrorReply.model_validate_json(reply.content)
    assert error.error.type == kind
    assert error.request_id == reply.headers["x-request-id"]
    assert int(reply.headers["content-length"]) == len(reply.content)
    return error.error.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens is 5000"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "1024"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0: tools of type 'bash_20250124'"),
        ({"tools": [WEATHER, WEATHER]}, "tools must have different names"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "f"}, "tools": [WEATHER]}, "tool_choice"),
        ({"messages": [*HELLO, {"role": "assistant", "content": ""}]}, "assistant"),
        ({"tools": [WEATHER], "output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config"),
    ],
)
def test_bad_requests(http: httpx.Client, body: dict[str, Any], words: str) -> None:
    assert words in told(http.post("/v1/messages", json={**ASK, **body}), 400, "invalid_request_error")


def test_other_refusals(http: httpx.Client) -> None:
    assert "'gpt'" in told(http.post("/v1/messages", json={**ASK, "model": "gpt"}), 404, "not_found_error")
    told(http.post("/v1/messages", content="{", headers={"content-type": "text/plain"}), 400, "invalid_request_error")
    told(http.get("/v1/messages"), 405, "invalid_request_error")
    told(http.post("/v1/messages/none", json={}), 404, "not_found_error")
    assert "type" not in http.post("/v1/messagesx", json={}).json()
    assert "text/event-stream" not in http.post("/v1/messages", json={**ASK, "model": "x", "stream": True}).text


def test_the_client_raises_its_own_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences"):
        client.messages.create(**ASK, stop_sequences=[""])
    with pytest.raises(anthropic.NotFoundError, match="there is no model"):
        client.messages.create(**{**ASK, "model": "claude"})


def test_a_failure_before_the_first_byte_has_a_status(server: ScriptedServer, http: httpx.Client) -> None:
    server.say("Hello")
    server.fail_at(0)
    for stream in (False, True):
        told(http.post("/v1/messages", json={**ASK, "stream": stream}), 500, "api_error")


def test_a_failure_on_the_way_is_an_event_and_the_end(
    server: ScriptedServer, client: anthropic.Anthropic, http: httpx.Client
) -> None:
    server.say("Hello there")
    server.fail_at(5)
    events = http.post("/v1/messages", json={**ASK, "stream": True}).text.rstrip("\n").split("\n\n")
    assert events[0].startswith("event: message_start")
    name, data = events[-1].split("\n")
    assert name == "event: error"
    error = AnthropicErrorReply.model_validate_json(data.removeprefix("data: "))
    assert error.error.type == "api_error"
    assert not any("message_stop" in event for event in events)
    with pytest.raises(anthropic.APIStatusError):
        final_of(client)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_is_stopped_is_an_overloaded_server(stream: bool) -> None:
    with serving_script() as server, httpx.Client(base_url=server.url, timeout=30) as http:
        server.say("Hello there " * 20)
        server.program.step_seconds = 0.02
        closer = threading.Timer(0.5, server.engine.client.close)
        closer.start()
        reply = http.post("/v1/messages", json={**ASK, "max_tokens": 200, "stream": stream})
        closer.join()
        if stream:
            error = AnthropicErrorReply.model_validate_json(reply.text.rpartition("data: ")[2])
            assert (reply.status_code, error.error.type) == (200, "overloaded_error")
        else:
            told(reply, 503, "overloaded_error")
            assert int(reply.headers["retry-after"]) >= 1


def test_keys_come_in_either_header() -> None:
    with serving_script(api_keys=["söcret"]) as server, httpx.Client(base_url=server.url) as http:
        server.say("Hi")
        assert "key" in told(http.post("/v1/messages", json=ASK), 401, "authentication_error")
        key = "söcret".encode()
        for headers in ({b"x-api-key": key}, {b"authorization": b"Bearer " + key}):
            assert http.post("/v1/messages", json=ASK, headers=headers).status_code == 200
        for headers in ({b"x-api-key": b"wrong"}, {b"x-api-key": b""}, {b"authorization": b"Basic " + key}):
            assert http.post("/v1/messages", json=ASK, headers=headers).status_code == 401
        assert http.get("/v1/models", headers={b"x-api-key": key}).status_code == 200
