"""Bodies of `/v1/messages`, as Anthropic's clients write them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from roseinfer.core import limits
from roseinfer.server.schemas.base import (
    MAX_NAME_CHARS,
    AnswerTokens,
    Items,
    NotSupported,
    ReplyBody,
    RequestBody,
    TopK,
    TopP,
    counted,
    within,
)
from roseinfer.server.schemas.sampling import StopStrings, kind_of
from roseinfer.server.schemas.tools import FUNCTION_NAME, FunctionNameText
from roseinfer.server.schemas.usage import Timings


class Cached(RequestBody):
    """What a caller may ask to be cached."""

    cache_control: dict[str, Any] | None = Field(
        None, description="means nothing here: equal prefixes are found by themselves"
    )


class TextBlock(Cached):
    type: Literal["text"]
    text: str
    citations: list[dict[str, Any]] | None = Field(None, description="means nothing here")


class ThinkingBlock(RequestBody):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = Field(None, description="means nothing here: thinking is not signed")


class RedactedThinkingBlock(RequestBody):
    type: Literal["redacted_thinking"]
    data: str = Field(description="nobody can read it, and the model is not shown it")


class ToolUseBlock(Cached):
    type: Literal["tool_use"]
    id: str
    name: FunctionNameText
    input: dict[str, Any]
    caller: dict[str, Any] | None = Field(None, description="means nothing here")


def _text_blocks_only(value: Any) -> Any:
    return _check_type(value, ("text",))


def _known_blocks_only(value: Any) -> Any:
    return _check_type(value, ("text", "thinking", "redacted_thinking", "tool_use", "tool_result"))


def _check_type(value: Any, known: tuple[str, ...]) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in known:
        raise PydanticCustomError(
            "block_type",
            "blocks of type {kind} are not supported here: it takes {known}",
            {"kind": repr(kind)[:MAX_NAME_CHARS], "known": ", ".join(known)},
        )
    return value


Text = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[Items[Annotated[TextBlock, BeforeValidator(_text_blocks_only)]], Tag("list")],
    Discriminator(
        kind_of, custom_error_type="text_type", custom_error_message="must be a string or a list of text blocks"
    ),
]


class ToolResultBlock(Cached):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Text | None = Field(None, description="what the tool said")
    is_error: bool | None = Field(None, description="the model is told that the tool failed")


Block = Annotated[
    Annotated[
        TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock, Discriminator("type")
    ],
    BeforeValidator(_known_blocks_only),
]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[Items[Block], Tag("list")],
    Discriminator(
        kind_of, custom_error_type="content_type", custom_error_message="must be a string or a list of blocks"
    ),
]

_ROLE_OF_BLOCK = {
    "thinking": "assistant",
    "redacted_thinking": "assistant",
    "tool_use": "assistant",
    "tool_result": "user",
}


class InputMessage(RequestBody):
    role: Literal["user", "assistant", "system"]
    content: Content

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        for block in self.blocks:
            if _ROLE_OF_BLOCK.get(block.type, self.role) != self.role:
                raise PydanticCustomError(
                    "block_role",
                    "a block of type {kind} cannot be part of a message of role {role}",
                    {"kind": block.type, "role": self.role},
                )
        return self

    @property
    def blocks(self) -> list[Block]:
        """A string is one block of text."""
        if isinstance(self.content, str):
            return [TextBlock.model_validate({"type": "text", "text": self.content})]
        return self.content


def texts_of(text: Text | None) -> list[str]:
    """What its blocks say; a string is one block."""
    return [text] if isinstance(text, str) else [block.text for block in text or ()]


def _own_tools_only(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in (None, "custom"):
        raise PydanticCustomError(
            "tool_type",
            "tools of type {kind} are not supported: this server runs none, it takes tools with an input_schema",
            {"kind": repr(kind)[:MAX_NAME_CHARS]},
        )
    return value


class Tool(Cached):
    type: Literal["custom"] | None = None
    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="a JSON schema of the input")
    strict: bool | None = Field(None, description="the input satisfies the schema always")
    allowed_callers: Items[Literal["direct"]] | None = Field(None, description="only the model calls tools")
    defer_loading: Literal[False] | None = Field(None, description="not supported")
    eager_input_streaming: bool | None = Field(None, description="means nothing here: input is streamed as it comes")
    input_examples: NotSupported = Field(None, description="not supported")


OwnTool: TypeAlias = Annotated[Tool, BeforeValidator(_own_tools_only)]


class PlainToolChoice(RequestBody):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = Field(None, description="not more than one call in an answer")


class NamedToolChoice(RequestBody):
    type: Literal["tool"]
    name: str = Field(pattern=FUNCTION_NAME)
    disable_parallel_tool_use: bool | None = Field(None, description="not more than one call in an answer")


ToolChoice: TypeAlias = Annotated[
    PlainToolChoice | NamedToolChoice,
    Discriminator(
        "type",
        custom_error_type="tool_choice",
        custom_error_message="must be an object whose type is auto, any, tool or none",
    ),
]


class ThinkingEnabled(RequestBody):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, within(limits.THINKING_TOKENS)] = Field(
        description="no bound of its own here: max_tokens counts thinking, too"
    )
    display: Literal["summarized"] | None = Field(None, description="thinking is shown as it is")


class ThinkingAdaptive(RequestBody):
    type: Literal["adaptive"]
    display: Literal["summarized"] | None = Field(None, description="thinking is shown as it is")


class ThinkingDisabled(RequestBody):
    type: Literal["disabled"]


Thinking: TypeAlias = Annotated[
    ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled,
    Discriminator(
        "type",
        custom_error_type="thinking",
        custom_error_message="must be an object whose type is enabled, adaptive or disabled",
    ),
]


class OutputFormat(RequestBody):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema", description="the answer satisfies it always")


class OutputConfig(RequestBody):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="for models whose chat template knows it"
    )
    format: OutputFormat | None = Field(None, description="what the answer must look like")


class CountTokensRequest(Cached):
    model: str = Field(description="the name in /v1/models")
    messages: Items[InputMessage] = Field(
        min_length=1, description="turns of one role are joined; a last one of the assistant is gone on with"
    )
    system: Text | None = Field(None, description="what the model is told beforehand")
    tools: Annotated[Items[OwnTool], counted(limits.TOOLS)] | None = Field(
        None, description="functions the model may call"
    )
    tool_choice: ToolChoice | None = Field(None, description="default auto where there are tools")
    thinking: Thinking | None = Field(None, description="for models whose chat template knows it")
    output_config: OutputConfig | None = None
    speed: Literal["standard"] | None = Field(None, description="there is only one")
    user_profile_id: str | None = Field(None, description="means nothing here")
    context_management: NotSupported = Field(None, description="not supported")
    mcp_servers: NotSupported = Field(None, description="not supported")
    output_format: NotSupported = Field(None, description="not supported: see output_config")

    def warnings(self) -> list[str] | None:
        warnings = super().warnings() or []
        if isinstance(self.thinking, ThinkingEnabled):
            warnings.append("thinking.budget_tokens is not enforced: thinking counts towards max_tokens")
        return warnings or None


class Metadata(RequestBody):
    user_id: str | None = Field(None, description="means nothing here")


class MessagesRequest(CountTokensRequest):
    max_tokens: AnswerTokens = Field(description="the answer is not longer")
    metadata: Metadata | None = None
    stop_sequences: StopStrings | None = Field(None, description="strings that end the answer and are no part of it")
    stream: bool | None = Field(None, description="server-sent events, as the answer is generated")
    temperature: Annotated[float, within(limits.MESSAGES_TEMPERATURE)] | None = Field(
        None, description="0 = greedy; default 1"
    )
    top_p: TopP | None = Field(None, description="sample from the likeliest tokens of this mass; default 1")
    top_k: TopK | None = Field(None, description="sample from this many likeliest tokens; 0 = all")
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="there is only one")
    container: NotSupported = Field(None, description="not supported")
    diagnostics: NotSupported = Field(None, description="not supported")
    inference_geo: NotSupported = Field(None, description="not supported")


class TextBlockReply(ReplyBody):
    type: Literal["text"]
    text: str
    citations: None


class ThinkingBlockReply(ReplyBody):
    type: Literal["thinking"]
    thinking: str
    signature: str = Field(description="always empty: thinking is not signed")


class ToolUseBlockReply(ReplyBody):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(ReplyBody):
    input_tokens: int = Field(description="prompt tokens that were computed")
    cache_creation_input_tokens: int = Field(description="always 0: they are among the input_tokens")
    cache_read_input_tokens: int = Field(description="prompt tokens that were taken from the prefix cache")
    output_tokens: int


class MessageReply(ReplyBody):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlockReply | ThinkingBlockReply | ToolUseBlockReply]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage
    timings: Timings
    warnings: list[str] | None = None


class CountTokensReply(ReplyBody):
    input_tokens: int
    warnings: list[str] | None = None


class AnthropicErrorDetail(ReplyBody):
    type: str
    message: str


class AnthropicErrorReply(ReplyBody):
    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str | None
