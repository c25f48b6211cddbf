"""`/v1/responses` as OpenAI's own client uses it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, get_args

import httpx
import openai
import pytest
from pydantic import BaseModel
from starlette.requests import Request

from roseinfer.core.errors import EngineStoppedError, InvalidRequestError, RoseinferError
from roseinfer.server import whole, worker
from roseinfer.server.errors import RequestTimeoutError
from roseinfer.server.responses import responding
from roseinfer.server.responses.responding import failure_code, prepare_response
from roseinfer.server.schemas.responses import ResponseError, ResponseReply, ResponseRequest
from roseinfer.server.sse import foreseen
from tests.server.live import assert_error, serve
from tests.server.scripted import PROMPT, ScriptedProgram, ScriptedServer, scripted_engine, serving_script

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
ASK: Any = {"model": "scripted", "input": "Hello"}
LOGPROBS: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


class Answer(BaseModel):
    capital: str


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with serving_script() as live:
        yield live


@pytest.fixture(scope="module")
def client(server: ScriptedServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as client:
        yield client


def events_of(http: httpx.Client, **body: Any) -> list[Any]:
    text = http.post("/v1/responses", json={**ASK, **body, "stream": True}).text
    events = [event.split("\n") for event in text.rstrip("\n").split("\n\n")]
    parsed = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [name.removeprefix("event: ") for name, _ in events] == [event["type"] for event in parsed]
    assert [event["sequence_number"] for event in parsed] == list(range(len(parsed)))
    return parsed


def plain(response: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from one answer to the next."""
    for item in response["output"]:
        assert item.pop("id")
        item.pop("call_id", None)
        for part in item.get("content") or []:
            part.pop("parsed", None)
        item.pop("parsed_arguments", None)
    names = ("id", "created_at", "completed_at", "timings")
    usage = response["usage"]
    usage["input_tokens_details"].pop("cached_tokens")
    return {name: value for name, value in response.items() if name not in names}


def test_a_response(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.say("Grüezi!")
    response = client.responses.create(**ASK)
    assert response.output_text == "Grüezi!"
    assert (response.status, response.model, response.object) == ("completed", "scripted", "response")
    assert response.id.startswith("resp_")
    assert response.usage is not None
    num_output = len("Grüezi!".encode()) + 1
    assert (response.usage.input_tokens, response.usage.output_tokens) == (len(PROMPT), num_output)
    assert response.usage.total_tokens == len(PROMPT) + num_output
    assert response.to_dict()["store"] is False


@pytest.mark.parametrize(
    "script",
    ["Grüezi 😀!", "", "<think>Hm.\nWell</think>\n\nYes", f"One moment. {CALL}", f"<think>Hm</think>{CALL}\n{CALL}"],
)
def test_streamed_is_what_is_not_streamed(server: ScriptedServer, client: openai.OpenAI, script: str) -> None:
    server.say(script)
    whole = client.responses.create(**ASK, tools=[WEATHER]).to_dict()
    server.program.step_seconds = 0.001
    with client.responses.stream(**ASK, tools=[WEATHER]) as stream:
        events = list(stream)
        streamed = stream.get_final_response().to_dict()
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert plain(streamed) == plain(whole)


def test_reasoning_is_an_item_and_counted(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.say("<think>Hm, well</think>Yes")
    response = client.responses.create(**ASK)
    reasoning, message = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert (reasoning.content[0].text, reasoning.summary) == ("Hm, well", [])
    assert message.type == "message"
    assert response.output_text == "Yes"
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == len("Hm, well")


def test_a_call_and_its_output(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.say(CALL)
    (call,) = client.responses.create(**ASK, tools=[WEATHER]).output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Zürich"})
    server.say("It rains.")
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    items: Any = [{"role": "user", "content": "Weather?"}, call.to_dict(), output]
    answer = client.responses.create(model="scripted", input=items, tools=[WEATHER])
    assert answer.output_text == "It rains."


def test_arguments_are_streamed(server: ScriptedServer, http: httpx.Client) -> None:
    server.say(CALL)
    server.program.step_seconds = 0.002
    events = events_of(http, tools=[WEATHER])
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 3
    (done,) = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert json.loads("".join(deltas)) == json.loads(done["arguments"]) == {"city": "Zürich"}


def test_async(server: ScriptedServer) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
            whole = await client.responses.create(**ASK)
            async with client.responses.stream(**ASK) as stream:
                streamed = await stream.get_final_response()
            return whole.output_text, streamed.output_text

    server.say("Hi")
    assert asyncio.run(ask()) == ("Hi", "Hi")


def test_parsing(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.say('{"capital": "Bern"}')
    response = client.responses.parse(**ASK, text_format=Answer)
    assert response.output_parsed == Answer(capital="Bern")
    with client.responses.stream(**ASK, text_format=Answer) as stream:
        assert stream.get_final_response().output_parsed == Answer(capital="Bern")


async def _no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}}}, "json_schema"),
        ({"text": {"format": {"type": "json_object"}}}, "json_schema"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "lark"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}}, "lark"),
        ({"tools": [WEATHER]}, None),
        ({}, None),
    ],
)
def test_what_an_answer_must_be_reaches_the_engine(
    server: ScriptedServer, body: dict[str, Any], kind: str | None
) -> None:
    app = SimpleNamespace(state=SimpleNamespace(engine=server.engine))
    request = Request({"type": "http", "app": app, "state": {}}, _no_body)
    job = asyncio.run(prepare_response(ResponseRequest.model_validate({**ASK, **body}), request))
    grammar = job.generations[0].request.grammar
    assert (grammar.kind if grammar else None) == kind


def test_an_answer_that_is_too_long_is_incomplete(
    server: ScriptedServer, client: openai.OpenAI, http: httpx.Client
) -> None:
    server.say("one two three")
    response = client.responses.create(**ASK, max_output_tokens=3)
    assert (response.status, response.output_text) == ("incomplete", "one")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].to_dict()["status"] == "incomplete"
    final = events_of(http, max_output_tokens=3)[-1]
    assert (final["type"], final["response"]["status"]) == ("response.incomplete", "incomplete")


@pytest.mark.parametrize("script", ["Grüezi", "<think>Hm</think>\n\nGrüezi", "<think>Hm</think>"])
def test_logprobs_are_those_of_the_text(server: ScriptedServer, client: openai.OpenAI, script: str) -> None:
    server.say(script)
    response = client.responses.create(**ASK, **LOGPROBS)
    parts: list[Any] = [part for item in response.output if item.type == "message" for part in item.content]
    entries = [entry for part in parts for entry in part.logprobs]
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == response.output_text
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries)
    server.program.step_seconds = 0.002
    with client.responses.stream(**ASK, **LOGPROBS) as stream:
        deltas = [event for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(delta.delta for delta in deltas) == response.output_text
    assert sum(len(delta.logprobs) for delta in deltas) == len(entries)
    assert plain(final.to_dict()) == plain(response.to_dict())


def test_a_long_response_is_written_by_a_thread_and_says_the_same(
    server: ScriptedServer, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, threads = responding.Answer._end, list[str]()

    def noting_end(answer: responding.Answer) -> list[dict[str, Any]]:
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return end(answer)

    monkeypatch.setattr(responding.Answer, "_end", noting_end)
    server.say("<think>Hm</think>" + "abcdefghi " * 90)
    whole_reply = plain(http.post("/v1/responses", json={**ASK, **LOGPROBS}).json())
    streamed = plain(events_of(http, **LOGPROBS)[-1]["response"])
    assert threads == ["roseinfer-short-reply"] * 2
    for module in (whole, worker):
        monkeypatch.setattr(module, "MAX_INLINE_CHARS", 10**9)
    assert plain(http.post("/v1/responses", json={**ASK, **LOGPROBS}).json()) == whole_reply == streamed
    assert len(whole_reply["output"][1]["content"][0]["logprobs"]) == 900
    assert threads[2] != threads[0]


def test_replies_are_as_documented(server: ScriptedServer, http: httpx.Client) -> None:
    server.say(f"<think>Hm</think>Well {CALL}")
    body = {**ASK, "tools": [WEATHER], "metadata": {"a": "b"}, "strange": 1}
    response = ResponseReply.model_validate_json(http.post("/v1/responses", json=body).content)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.warnings == ["unknown field 'strange' was ignored"]
    assert response.metadata == {"a": "b"}
    for event in (events := events_of(http, **body)):
        if "response" in event:
            ResponseReply.model_validate(event["response"])
    assert events[-1]["response"]["timings"] is not None


# -- what goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_output_tokens": "5"}, "max_output_tokens"),
        ({"input": "x" * 2000}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], **LOGPROBS}, "include"),
        ({"tools": [WEATHER], "text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
    ],
)
def test_bad_requests(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    reply = http.post("/v1/responses", json={**ASK, **body})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_what_does_not_fit_is_told_with_both_counts(http: httpx.Client) -> None:
    reply = http.post("/v1/responses", json={**ASK, "max_output_tokens": 5000})
    message = assert_error(reply, 400, "max_output_tokens", "context_length_exceeded")
    assert "5000" in message
    assert "1024" in message


def test_other_models_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.responses.create(model="gpt", input="Hello")


def test_a_failure_before_the_first_byte_has_a_status(server: ScriptedServer, http: httpx.Client) -> None:
    server.say("Hello")
    server.fail_at(0)
    for stream in (False, True):
        assert_error(http.post("/v1/responses", json={**ASK, "stream": stream}), 500)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequestError("it is not allowed", "prompt"), "invalid_prompt"),
        (EngineStoppedError("the engine was stopped"), "server_error"),
        (RequestTimeoutError(3), "server_error"),
        (foreseen(ValueError("unforeseen")), "server_error"),
    ],
)
def test_the_code_of_a_failure_is_one_that_clients_know(error: RoseinferError, code: str) -> None:
    known = get_args(openai.types.responses.ResponseError.model_fields["code"].annotation)
    ours = get_args(ResponseError.model_fields["code"].annotation)
    assert failure_code(error) == code in ours
    assert set(ours) <= set(known)


def test_a_failure_on_the_way_is_the_last_event(server: ScriptedServer, http: httpx.Client) -> None:
    server.say("Hello there")
    server.fail_at(5)
    events = events_of(http)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    ResponseReply.model_validate(events[-1]["response"])
    assert [event["type"] for event in events].count("response.output_text.delta") >= 1


@pytest.mark.parametrize("name", ["write", "end"])
def test_a_failure_while_a_thread_writes_follows_what_was_sent(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The time is up when the thread has written, and holds what it wrote."""
    write, is_over, has_written = getattr(responding.Answer, name), threading.Event(), threading.Event()

    def slow_write(answer: responding.Answer, *args: Any) -> bytes:
        written: bytes = write(answer, *args)
        if b"response.output_item.done" in written:
            has_written.set()
            is_over.wait(30)
        return written

    monkeypatch.setattr(responding.Answer, name, slow_write)
    monkeypatch.setattr(worker, "MAX_INLINE_CHARS", 0)
    program = ScriptedProgram()
    program.script, program.step_seconds = "<think>Hm</think>Hello", 0.005
    with (
        scripted_engine(program) as engine,
        serve(engine, request_timeout=1.5) as url,
        httpx.Client(base_url=url) as http,
    ):
        try:
            *others, failed = events_of(http, **LOGPROBS)
        finally:
            is_over.set()
    assert has_written.is_set()
    assert failed["type"] == "response.failed"
    assert "response.completed" not in [event["type"] for event in others]
    response = failed["response"]
    assert (response["status"], response["completed_at"], response["usage"]) == ("failed", None, None)
    closed = [event["item"] for event in others if event["type"] == "response.output_item.done"]
    assert response["output"] == closed
    ResponseReply.model_validate(response)
