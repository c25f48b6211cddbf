"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.answering import TEMPLATE
from tests.server.live import LiveServer, assert_error, serving


@pytest.fixture(scope="module")
def chatty() -> Iterator[LiveServer]:
    with serving(chat_template=TEMPLATE) as live:
        yield live


@pytest.mark.parametrize("text", ["Hello", "", "Ünï", "x" * 5000])
def test_there_and_back(server: LiveServer, text: str) -> None:
    reply = server.client.post("/tokenize", json={"prompt": text}).json()
    ids = list(text.encode())
    assert reply == {"count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": None}
    assert server.client.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}


def test_strings_and_warnings(server: LiveServer) -> None:
    reply = server.client.post("/tokenize", json={"prompt": "aü", "return_token_strs": True, "model": "fake", "x": 1})
    assert reply.json()["token_strs"] == ["a", "\ufffd", "\ufffd"]
    assert reply.json()["warnings"] == ["unknown field 'x' was ignored"]
    assert server.client.post("/detokenize", json={"tokens": [], "x": 1}).json()["warnings"]


def test_messages(chatty: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False}
    reply = chatty.client.post("/tokenize", json=body).json()
    assert bytes(reply["tokens"]) == b"user: a\n"


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {}, "prompt"),
    ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
    ("/tokenize", {"prompt": 1}, "prompt"),
    ("/tokenize", {"messages": []}, "messages"),
    ("/detokenize", {}, "tokens"),
    ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
    ("/detokenize", {"tokens": [-1]}, "tokens.0"),
    ("/detokenize", {"tokens": [258]}, "tokens"),
    ("/detokenize", {"tokens": [2**31]}, "tokens.0"),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD)
def test_refusals(server: LiveServer, path: str, body: dict[str, Any], param: str) -> None:
    assert_error(server.client.post(path, json=body), 400, param=param)


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})])
def test_another_model_is_not_found(server: LiveServer, path: str, body: dict[str, Any]) -> None:
    assert_error(server.client.post(path, json={**body, "model": "x"}), 404, param="model", code="model_not_found")


def test_messages_need_a_template(server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "a"}]}
    assert_error(server.client.post("/tokenize", json=body), 400, param="messages", code="chat_template_missing")
