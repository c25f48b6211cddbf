"""Replies whole and in parts, in one form."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

Body = dict[str, Any]

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
CHAT = [{"role": "user", "content": "Hi"}]


@dataclass
class Choice:
    """What a choice says in the end, however it was told."""

    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[int] | None = None
    logprobs: list[Any] = field(default_factory=list)


@dataclass
class Answer:
    choices: list[Choice]
    usage: Body
    warnings: list[str]

    @property
    def text(self) -> str:
        return self.choices[0].text


def prompt_of(path: str) -> Body:
    return {"prompt": "Hi"} if path == COMPLETIONS else {"messages": CHAT}


def ask(client: httpx.Client, path: str, body: Body) -> Answer:
    """The whole reply."""
    reply = client.post(path, json=body)
    assert reply.status_code == 200, (body, reply.text)
    fields = reply.json()
    choices = [_add(Choice(), each, each.get("message", each)) for each in fields["choices"]]
    for choice in choices:
        choice.prompt_token_ids = choice.prompt_token_ids or fields.get("prompt_token_ids")
    return Answer(choices, fields["usage"], fields.get("warnings", []))


def ask_streaming(client: httpx.Client, path: str, body: Body) -> Answer:
    """The parts of a stream, put together."""
    options = {**(body.get("stream_options") or {}), "include_usage": True}
    reply = client.post(path, json={**body, "stream": True, "stream_options": options})
    assert reply.status_code == 200, (body, reply.text)
    chunks = read_events(reply.text)
    choices: dict[int, Choice] = {}
    for chunk in chunks:
        for each in chunk["choices"]:
            _add(choices.setdefault(each["index"], Choice()), each, each.get("delta", each))
    assert chunks[-1]["choices"] == []
    in_order = [choices[index] for index in sorted(choices)]
    return Answer(in_order, chunks[-1]["usage"], chunks[0].get("warnings", []))


def ask_both(client: httpx.Client, path: str, body: Body) -> Answer:
    """Both ways, which must say the same."""
    whole, streamed = ask(client, path, body), ask_streaming(client, path, body)
    for choice, parts in zip(whole.choices, streamed.choices, strict=True):
        parts.prompt_token_ids = choice.prompt_token_ids  # a stream of a chat does not tell them
        assert choice == parts, body
    assert count_tokens(whole) == count_tokens(streamed)
    assert whole.warnings == streamed.warnings
    return whole


def count_tokens(answer: Answer) -> tuple[int, int]:
    return answer.usage["prompt_tokens"], answer.usage["completion_tokens"]


def read_events(text: str) -> list[Any]:
    """Checks the framing: one `data:` line per event, `[DONE]` behind the last."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _add(choice: Choice, fields: Body, said: Body) -> Choice:
    choice.text += said.get("text") or said.get("content") or ""
    choice.finish_reason = fields.get("finish_reason") or choice.finish_reason
    choice.stop_reason = fields.get("stop_reason", choice.stop_reason)
    choice.token_ids += fields.get("token_ids") or []
    choice.prompt_token_ids = fields.get("prompt_token_ids") or choice.prompt_token_ids
    choice.logprobs += _entries(fields.get("logprobs"))
    return choice


def _entries(logprobs: Body | None) -> list[Any]:
    """One for each token, of either route's shape."""
    if logprobs is None:
        return []
    if "content" in logprobs:
        return list(logprobs["content"])
    names = [name for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset") if logprobs[name] is not None]
    return [dict(zip(names, entry, strict=True)) for entry in zip(*[logprobs[name] for name in names], strict=True)]
