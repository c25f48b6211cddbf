"""Parts of a chat request's body, as the translations of other APIs write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Fields = dict[str, Any]


def text_content(texts: Sequence[str]) -> str | list[Fields]:
    """One text, or none, is a string: it looks the same to every chat template."""
    return [{"type": "text", "text": text} for text in texts] if len(texts) > 1 else "".join(texts)


def tool_call(call_id: str, name: str, arguments: str) -> Fields:
    """`arguments` are JSON."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_message(call_id: str, content: str | list[Fields], name: str | None) -> Fields:
    """What a call has brought; `name` is the tool's, if it is known."""
    message = {"role": "tool", "tool_call_id": call_id, "content": content}
    return message if name is None else {**message, "name": name}


def function_tool(name: str, description: str | None, parameters: Fields | None, strict: bool | None) -> Fields:
    function = {"name": name, "description": description, "parameters": parameters, "strict": strict}
    return {"type": "function", "function": {field: value for field, value in function.items() if value is not None}}


def named_function(name: str) -> Fields:
    """The `tool_choice` that asks for a call of this one."""
    return {"type": "function", "function": {"name": name}}
