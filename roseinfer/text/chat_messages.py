"""Messages and tools as OpenAI's clients send them → as chat templates read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from roseinfer.core.errors import InvalidRequestError

Message = dict[str, Any]

_MAX_DEPTH = 100
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # where the text is
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def plain_copy(value: Any, param: str, depth: int = 0) -> Any:
    """A copy of JSON-like data made of plain types only: a template gets hold of no other object."""
    if depth > _MAX_DEPTH:
        raise InvalidRequestError(f"{param} must be nested at most {_MAX_DEPTH} levels deep", param)
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {_checked_key(key, param): plain_copy(item, param, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_copy(item, param, depth + 1) for item in value]
    raise InvalidRequestError(f"{param} must consist of JSON values, got {type(value).__name__}", param)


def _checked_key(key: object, param: str) -> str:
    if type(key) is not str:
        raise InvalidRequestError(f"{param} must consist of JSON values, got a key that is no string", param)
    return key


def prepare_messages(
    messages: Sequence[Mapping[str, Any]], *, as_parts: bool, keep_parts: bool, keep_null: bool = True
) -> list[Message]:
    """Copies for a template: fields that are null are left out, except `content`; arguments of tool calls are objects.

    `as_parts`: the template reads lists of parts only. `keep_parts`: it reads them too; else the texts of all parts
    become one string, joined by newlines. Without `keep_null` content that is null, as beside tool calls, is empty: a
    template that does not know of them would fail. Raises InvalidRequestError naming what is wrong.
    """
    if not messages:
        raise InvalidRequestError("messages must not be empty", "messages")
    prepared = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequestError(f"messages[{index}] must be an object with a role", "messages")
        copy = _message(plain_copy(message, "messages"))
        content = copy.get("content")
        if content is None and not keep_null:
            content = ""
        copy["content"] = _content(content, f"messages[{index}].content", as_parts, keep_parts)
        prepared.append(copy)
    return prepared


def has_tool_messages(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether tools were called in a conversation, so that its template must know of them."""
    return any(
        isinstance(message, Mapping) and (message.get("role") == "tool" or message.get("tool_calls"))
        for message in messages
    )


def _message(message: Message) -> Message:
    copy = {name: value for name, value in message.items() if value is not None}
    tool_calls = copy.pop("tool_calls", None)
    if tool_calls:
        copy["tool_calls"] = [_tool_call(call) for call in tool_calls] if isinstance(tool_calls, list) else tool_calls
    reasoning = next((copy[name] for name in _REASONING_FIELDS if name in copy), None)
    return copy if reasoning is None else {"thinking": reasoning, **copy, "reasoning_content": reasoning}


def _tool_call(call: Any) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = call["function"]
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(arguments: Any) -> Any:
    """The object that a string of JSON holds; what a model wrote wrongly stays the string it is."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        parsed = json.loads(arguments) if arguments.strip() else {}
        return plain_copy(parsed, "messages") if isinstance(parsed, dict) else arguments
    except (ValueError, RecursionError, InvalidRequestError):
        return arguments


def _content(content: Any, where: str, as_parts: bool, keep_parts: bool) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if as_parts else content
    if content is None or isinstance(content, dict):  # some templates read objects
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(f"{where} must be a string, a list of text parts or null", "messages")
    texts = [_text_of(part, f"{where}[{index}]") for index, part in enumerate(content)]
    if as_parts or (keep_parts and len(texts) > 1):
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise InvalidRequestError(f"{where} must be a part of type text, got {kind!r:.80}", "messages")
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}.{field} must be a string", "messages")
    return text
