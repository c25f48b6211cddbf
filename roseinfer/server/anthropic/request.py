"""A body of `/v1/messages` → the fields of a chat request that means the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence

from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.chat_fields import Fields, function_tool, named_function, text_content, tool_call, tool_message
from roseinfer.server.schemas.anthropic import (
    Block,
    CountTokensRequest,
    InputMessage,
    MessagesRequest,
    NamedToolChoice,
    OutputConfig,
    TextBlock,
    ThinkingBlock,
    ThinkingDisabled,
    ThinkingEnabled,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    texts_of,
)

# Where a chat request has a field of another name, for errors.
NAMES = {
    "stop": "stop_sequences",
    "max_completion_tokens": "max_tokens",
    "prompt": "messages",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
}

_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_fields(body: MessagesRequest) -> Fields:
    """Only those that the body gives. Raises InvalidRequestError for messages that cannot be gone on with."""
    user = body.metadata.user_id if body.metadata else None
    fields = {
        "max_completion_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stream": body.stream,
        "user": user,
    }
    return prompt_fields(body) | {name: value for name, value in fields.items() if value is not None}


def prompt_fields(body: CountTokensRequest) -> Fields:
    """Those that decide what the prompt is."""
    fields: Fields = {"model": body.model, "messages": _system(body) + _messages(body.messages)}
    if body.messages[-1].role == "assistant":
        _check_prefill(body.messages[-1])
        fields |= {"add_generation_prompt": False, "continue_final_message": True}
    if body.tools:
        fields["tools"] = [
            function_tool(tool.name, tool.description, tool.input_schema, tool.strict) for tool in body.tools
        ]
    if body.tool_choice is not None:
        fields |= _tool_choice(body.tool_choice)
    if isinstance(body.thinking, ThinkingEnabled | ThinkingDisabled):
        fields["chat_template_kwargs"] = {"enable_thinking": isinstance(body.thinking, ThinkingEnabled)}
    return fields if body.output_config is None else fields | _output(body.output_config)


def _check_prefill(message: InputMessage) -> None:
    if not all(isinstance(block, TextBlock) for block in message.blocks):
        raise InvalidRequestError(
            "messages ends with a turn of the assistant, which can be gone on with only if it is all text", "messages"
        )


def _system(body: CountTokensRequest) -> list[Fields]:
    texts = texts_of(body.system)
    return [{"role": "system", "content": text_content(texts)}] if texts else []


def _messages(messages: Sequence[InputMessage]) -> list[Fields]:
    """Neighbouring turns of one role are one turn."""
    translated: list[Fields] = []
    names: dict[str, str] = {}  # of called tools, by the id of the call
    for role, turns in itertools.groupby(messages, key=lambda message: message.role):
        blocks = [block for turn in turns for block in turn.blocks]
        names.update((block.id, block.name) for block in blocks if isinstance(block, ToolUseBlock))
        translated += [_assistant(blocks)] if role == "assistant" else _others(role, blocks, names)
    return translated


def _others(role: str, blocks: Sequence[Block], names: dict[str, str]) -> list[Fields]:
    """Results of tools are messages of their own; the blocks stay in order."""
    messages: list[Fields] = []
    for is_result, run in itertools.groupby(blocks, key=lambda block: isinstance(block, ToolResultBlock)):
        if is_result:
            messages += [_tool_result(block, names) for block in run if isinstance(block, ToolResultBlock)]
        else:
            messages.append({"role": role, "content": text_content(_texts(run))})
    return messages or [{"role": role, "content": ""}]


def _tool_result(block: ToolResultBlock, names: dict[str, str]) -> Fields:
    texts = texts_of(block.content)
    if block.is_error:
        texts = [f"Error: {texts[0]}", *texts[1:]] if texts else ["Error"]
    return tool_message(block.tool_use_id, text_content(texts), names.get(block.tool_use_id))


def _assistant(blocks: Sequence[Block]) -> Fields:
    message: Fields = {"role": "assistant", "content": text_content(_texts(blocks))}
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls := [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]:
        message["tool_calls"] = calls
    return message


def _call(block: ToolUseBlock) -> Fields:
    return tool_call(block.id, block.name, json.dumps(block.input, ensure_ascii=False))


def _texts(blocks: Iterable[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, TextBlock)]


def _tool_choice(choice: ToolChoice) -> Fields:
    fields: Fields = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    if isinstance(choice, NamedToolChoice):
        return {**fields, "tool_choice": named_function(choice.name)}
    return {**fields, "tool_choice": _TOOL_CHOICES[choice.type]}


def _output(config: OutputConfig) -> Fields:
    fields: Fields = {}
    if config.effort is not None:  # chats have no name for more than the second highest
        fields["reasoning_effort"] = "xhigh" if config.effort == "max" else config.effort
    if config.format is not None:
        schema = {"name": "output", "schema": config.format.schema_, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields
