"""Answers that must look like something: grammars are compiled and obeyed, and their faults are the caller's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.answering import TEMPLATE, AnsweringProgram
from tests.server.byte_server import byte_engine
from tests.server.live import assert_error, serve

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with byte_engine() as engine, serve(engine) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def tool_client() -> Iterator[httpx.Client]:
    """For a model that may call tools; its prompts end within its thoughts, which it ends at once."""
    with (
        byte_engine(AnsweringProgram("</think>nonsense"), template=TEMPLATE + "<think>{# </think> #}") as engine,
        serve(engine) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def complete(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": "a", "max_tokens": 100, "temperature": 0, **body})


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "stop"
    text: str = choice["text"]
    return text


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        ({"choice": ["Paris", "Rom"]}, ["Paris", "Rom"]),
        ({"regex": "[ab]{3}-c"}, [f"{x}{y}{z}-c" for x in "ab" for y in "ab" for z in "ab"]),
        ({"grammar": 'start: "yes" | "no"'}, ["yes", "no"]),
        ({"grammar": 'root ::= "yes" | "no"'}, ["yes", "no"]),
    ],
)
def test_structured_outputs(client: httpx.Client, wanted: dict[str, Any], texts: list[str]) -> None:
    assert text_of(complete(client, structured_outputs=wanted)) in texts


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)], ids=["object", "text"])
def test_a_schema(client: httpx.Client, schema: Any) -> None:
    bias = {str(ord(space)): -100 for space in " \n\t"}  # or the model of bytes writes white space without end
    answer = text_of(complete(client, structured_outputs={"json": schema}, logit_bias=bias))
    assert isinstance(json.loads(answer)["ok"], bool)


def test_response_format(client: httpx.Client) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    body = {"messages": HELLO, "response_format": wanted, "temperature": 0, "logit_bias": {"32": -100, "10": -100}}
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert isinstance(json.loads(choice["message"]["content"])["ok"], bool)


def chat(client: httpx.Client, **body: Any) -> dict[str, Any]:
    """The message; white space is written only where nothing else may be."""
    bias = {str(ord(space)): -100 for space in " \t\r\n"}
    reply = client.post("/v1/chat/completions", json={"messages": HELLO, "temperature": 0, "logit_bias": bias, **body})
    assert reply.status_code == 200, reply.text
    message: dict[str, Any] = reply.json()["choices"][0]["message"]
    return message


def tool(name: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "parameters": {"properties": {}, "additionalProperties": False}},
    }


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", ["look", "listen"]), ({"type": "function", "function": {"name": "listen"}}, ["listen"])],
)
def test_calls_that_must_be(tool_client: httpx.Client, choice: Any, names: list[str]) -> None:
    body = {"tools": [tool("look"), tool("listen")], "tool_choice": choice, "parallel_tool_calls": False}
    message = chat(tool_client, **body)
    (call,) = message["tool_calls"]
    assert call["function"]["name"] in names
    assert json.loads(call["function"]["arguments"]) == {}


def test_json_follows_the_thoughts(tool_client: httpx.Client) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    message = chat(tool_client, response_format=wanted)
    assert isinstance(json.loads(message["content"])["ok"], bool)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a" * 1025}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: nobody"}}, "structured_outputs"),
    ({"structured_outputs": {"json": {"type": "nope"}}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": {"enum": ["a" * 70_000]}}}, "structured_outputs"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
        "response_format",
    ),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[str(index) for index in range(len(BAD))])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_faults_are_the_callers(client: httpx.Client, fields: dict[str, Any], param: str, is_streamed: bool) -> None:
    assert_error(complete(client, **fields, stream=is_streamed), 400, param=param)
