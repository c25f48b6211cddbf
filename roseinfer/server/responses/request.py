"""A body of `/v1/responses` → the fields of a chat request that means the same."""

from __future__ import annotations

from collections.abc import Sequence

from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.chat_fields import Fields, function_tool, named_function, text_content, tool_call, tool_message
from roseinfer.server.schemas.responses import (
    AllowedTools,
    Content,
    Format,
    FunctionCallItem,
    FunctionName,
    FunctionOutputItem,
    Item,
    JsonSchemaFormat,
    MessageItem,
    ReasoningItem,
    ResponseRequest,
    TextPart,
)

# Where a chat request has a field of another name, for errors.
NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}


def chat_fields(body: ResponseRequest) -> Fields:
    """Only those that the body gives. Raises InvalidRequestError naming the field for what does not go together."""
    fields = {
        "model": body.model,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "parallel_tool_calls": body.parallel_tool_calls,
        "stream": body.stream,
        "user": body.user,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "response_format": _response_format(body.text.format) if body.text and body.text.format else None,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return {"messages": _messages(body)} | given | _tools(body) | _logprobs(body)


def _logprobs(body: ResponseRequest) -> Fields:
    return {"logprobs": True, "top_logprobs": body.top_logprobs or 0} if body.wants_logprobs else {}


def _messages(body: ResponseRequest) -> list[Fields]:
    messages = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    return messages + _translate(body.input)


def _translate(items: Sequence[Item]) -> list[Fields]:
    """What the model said in one turn (reasoning, a message, calls) becomes one message."""
    messages: list[Fields] = []
    names: dict[str, str] = {}  # of called functions, by the id of the call
    for item in items:
        match item:
            case MessageItem(role="assistant"):
                _turn(messages, "content", "tool_calls")["content"] = _content(item.content)
            case MessageItem():
                messages.append({"role": item.role, "content": _content(item.content)})
            case ReasoningItem():
                _turn(messages, "reasoning_content", "content", "tool_calls")["reasoning_content"] = _thoughts(item)
            case FunctionCallItem():
                names[item.call_id] = item.name
                _turn(messages).setdefault("tool_calls", []).append(_call(item))
            case FunctionOutputItem():
                messages.append(_output(item, item.name or names.get(item.call_id)))
    return messages


def _turn(messages: list[Fields], *unless: str) -> Fields:
    """The assistant's message at the end, a new one if there is none or it holds any of these fields."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or not last.keys().isdisjoint(unless):
        last = {"role": "assistant"}
        messages.append(last)
    return last


def _thoughts(item: ReasoningItem) -> str:
    """The reasoning itself; where there is only a summary, that."""
    return "\n".join(part.text for part in item.content or item.summary or ())


def _call(item: FunctionCallItem) -> Fields:
    return tool_call(item.call_id, item.name, item.arguments)


def _output(item: FunctionOutputItem, name: str | None) -> Fields:
    return tool_message(item.call_id, _content(item.output), name)


def _content(content: Content) -> str | list[Fields]:
    if isinstance(content, str):
        return content
    return text_content([part.text if isinstance(part, TextPart) else part.refusal for part in content])


def _response_format(wanted: Format) -> Fields:
    if not isinstance(wanted, JsonSchemaFormat):
        return {"type": wanted.type}
    schema = {"name": wanted.name, "schema": wanted.schema_, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


def _tools(body: ResponseRequest) -> Fields:
    """Tools that are not allowed are not shown."""
    choice, tools = body.tool_choice, body.tools or []
    if isinstance(choice, AllowedTools):
        allowed = {tool.name for tool in choice.tools}
        if unknown := allowed - {tool.name for tool in tools}:
            raise InvalidRequestError(f"tool_choice allows {min(unknown)!r}, which is not in tools", "tool_choice")
        tools, choice = [tool for tool in tools if tool.name in allowed], choice.mode
    shown = [function_tool(tool.name, tool.description, tool.parameters, tool.strict) for tool in tools]
    fields: Fields = {"tools": shown} if shown else {}
    if isinstance(choice, FunctionName):
        fields["tool_choice"] = named_function(choice.name)
    elif choice is not None:
        fields["tool_choice"] = choice
    return fields
