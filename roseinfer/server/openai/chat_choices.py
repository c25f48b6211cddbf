"""The choices of a chat, whole or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from roseinfer.generation import Generation
from roseinfer.server.json_pieces import encode_json
from roseinfer.server.openai.chunks import Chunks
from roseinfer.server.openai.logprobs import chat_logprobs
from roseinfer.server.schemas.chat import ChatRequest
from roseinfer.text.chat_events import ChatEvent, ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart
from roseinfer.text.chat_output import ChatOutput
from roseinfer.text.output_text import TextDelta, TokenInfo

Fields = dict[str, Any]


def chat_choice(body: ChatRequest, output: ChatOutput, generation: Generation, delta: TextDelta) -> Fields:
    """A whole choice."""
    message = _message(output.push(delta.text) + output.finish())
    choice = {
        "index": generation.index,
        "message": message,
        "logprobs": chat_logprobs(delta.tokens) if body.logprobs else None,
        **_end(delta, output),
    }
    return {**choice, "token_ids": delta.token_ids} if body.return_token_ids else choice


def _message(events: Sequence[ChatEvent]) -> Fields:
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    calls = _tool_calls(events)
    message: Fields = {"role": "assistant", "content": content if content or not calls else None, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_calls(events: Sequence[ChatEvent]) -> list[Fields]:
    calls: list[Fields] = []
    for event in events:
        if isinstance(event, ToolCallStart):
            calls.append(_call(event))
        elif isinstance(event, ToolCallArguments):
            calls[event.index]["function"]["arguments"] += event.text
    return calls


def _call(event: ToolCallStart) -> Fields:
    return {"id": event.call_id, "type": "function", "function": {"name": event.name, "arguments": ""}}


def _end(delta: TextDelta, output: ChatOutput | None) -> Fields:
    """An answer that was cut off has not called anything that could be relied on."""
    reason = delta.finish_reason
    if reason == "stop" and output is not None and output.has_tool_calls:
        return {"finish_reason": "tool_calls", "stop_reason": delta.stop_reason}
    return {"finish_reason": reason, "stop_reason": delta.stop_reason}


class ChatStream:
    """Writes what each step brings. `outputs` is None for choices whose text is content and nothing else."""

    def __init__(self, body: ChatRequest, chunks: Chunks, outputs: Sequence[ChatOutput | None]) -> None:
        indices = range(len(outputs))
        self._chunks = chunks
        self._outputs = outputs
        self._with_logprobs = bool(body.logprobs)
        self._with_ids = bool(body.return_token_ids)
        self._is_plain = not self._with_logprobs and not self._with_ids
        self._heads = [chunks.start + b'{"index":%d,"delta":{"content":' % index for index in indices]
        self._tail = b'},"logprobs":null,"finish_reason":null}' + chunks.end
        self._is_begun = [False for _ in indices]
        self._tokens: list[list[TokenInfo]] = [[] for _ in indices]  # not told yet
        self._ids: list[list[int]] = [[] for _ in indices]

    def write(self, deltas: Sequence[tuple[Generation, TextDelta]]) -> bytes:
        return b"".join([piece for generation, delta in deltas for piece in self._pieces(generation, delta)])

    def _pieces(self, generation: Generation, delta: TextDelta) -> list[bytes]:
        index = generation.index
        pieces = []
        if not self._is_begun[index]:
            self._is_begun[index] = True
            pieces.append(self._chunk(index, {"role": "assistant", "content": ""}))
        self._tokens[index] += delta.tokens
        self._ids[index] += delta.token_ids
        pieces += [self._event(index, event) for event in self._events(index, delta)]
        if delta.finish_reason is not None:
            pieces.append(self._chunk(index, {}, **_end(delta, self._outputs[index])))
        return pieces

    def _events(self, index: int, delta: TextDelta) -> Sequence[ChatEvent]:
        output = self._outputs[index]
        if output is None:
            return [ContentDelta(delta.text)] if delta.text else []
        events = output.push(delta.text) if delta.text else []
        return events if delta.finish_reason is None else events + output.finish()

    def _event(self, index: int, event: ChatEvent) -> bytes:
        if isinstance(event, ContentDelta) and self._is_plain and self._chunks.is_plain:
            return self._heads[index] + encode_json(event.text) + self._tail
        return self._chunk(index, _delta(event))

    def _chunk(self, index: int, delta: Fields, **end: Any) -> bytes:
        choice: Fields = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **end}
        if self._with_logprobs and (delta.get("role") is None or self._tokens[index]):
            choice["logprobs"] = chat_logprobs(self._tokens[index])
            self._tokens[index] = []
        if self._with_ids:
            choice["token_ids"] = self._ids[index]
            self._ids[index] = []
        return self._chunks.chunk(choice)


def _delta(event: ChatEvent) -> Fields:
    match event:
        case ContentDelta():
            return {"content": event.text}
        case ReasoningDelta():
            return {"reasoning_content": event.text}
        case ToolCallStart():
            return {"tool_calls": [{"index": event.index, **_call(event)}]}
        case ToolCallArguments():
            return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
