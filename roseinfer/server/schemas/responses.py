"""Bodies of `/v1/responses`. The server keeps no responses: what refers to one that was given before is refused."""

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
    NumLogprobs,
    ReplyBody,
    RequestBody,
    Temperature,
    TopP,
    counted,
    within,
)
from roseinfer.server.schemas.sampling import kind_of
from roseinfer.server.schemas.tools import FUNCTION_NAME, FunctionNameText
from roseinfer.server.schemas.usage import Timings

Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]

_PART_TYPES = ("input_text", "output_text", "text", "refusal")
_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")


class TextPart(RequestBody):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, description="means nothing here")
    logprobs: list[Any] | None = Field(None, description="means nothing here")
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description="means nothing here")


class RefusalPart(RequestBody):
    type: Literal["refusal"]
    refusal: str


def _type_of(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else None


def _known_parts_only(value: Any) -> Any:
    if (kind := _type_of(value)) not in _PART_TYPES:
        raise PydanticCustomError(
            "part_type",
            "parts of type {kind} are not supported: the model reads text, no images, audio or files",
            {"kind": repr(kind)[:MAX_NAME_CHARS]},
        )
    return value


Part = Annotated[
    Annotated[TextPart | RefusalPart, Discriminator("type")],
    BeforeValidator(_known_parts_only),
]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[Items[Part], Tag("list")],
    Discriminator(
        kind_of, custom_error_type="content_type", custom_error_message="must be a string or a list of text parts"
    ),
]


class MessageItem(RequestBody):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    phase: str | None = Field(None, description="means nothing here")
    status: Status | None = None


class FunctionCallItem(RequestBody):
    type: Literal["function_call"]
    call_id: str
    name: FunctionNameText
    arguments: str = Field(description="JSON, as the model wrote it")
    id: str | None = None
    status: Status | None = None


class FunctionOutputItem(RequestBody):
    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    name: str | None = None
    status: Status | None = None


class ReasoningText(RequestBody):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(RequestBody):
    type: Literal["reasoning"]
    id: str | None = None
    summary: Items[ReasoningText] | None = None
    content: Items[ReasoningText] | None = None
    encrypted_content: NotSupported = Field(None, description="not supported: reasoning is not encrypted")
    status: Status | None = None


def _known_items_only(value: Any) -> Any:
    """A message need not say that it is one."""
    if not isinstance(value, dict):
        raise PydanticCustomError("item_type", "must be an object")
    kind = value.get("type", "message")
    if kind not in _ITEM_TYPES:
        raise PydanticCustomError(
            "item_type",
            "items of type {kind} are not supported: input takes {known}",
            {"kind": repr(kind)[:MAX_NAME_CHARS], "known": ", ".join(_ITEM_TYPES)},
        )
    return value


def _item_type(value: Any) -> Any:
    return value.get("type", "message") if isinstance(value, dict) else value.type


Item = Annotated[
    Annotated[
        Annotated[MessageItem, Tag("message")]
        | Annotated[FunctionCallItem, Tag("function_call")]
        | Annotated[FunctionOutputItem, Tag("function_call_output")]
        | Annotated[ReasoningItem, Tag("reasoning")],
        Discriminator(_item_type),
    ],
    BeforeValidator(_known_items_only),
]
Input = Annotated[
    Annotated[str, Tag("string")] | Annotated[Items[Item], Field(min_length=1), Tag("list")],
    Discriminator(kind_of, custom_error_type="input_type", custom_error_message="must be a string or a list of items"),
]


def _functions_only(value: Any) -> Any:
    if (kind := _type_of(value)) != "function":
        raise PydanticCustomError(
            "tool_type",
            "tools of type {kind} are not supported: this server runs none, it takes tools of type function",
            {"kind": repr(kind)[:MAX_NAME_CHARS]},
        )
    return value


class FunctionTool(RequestBody):
    type: Literal["function"]
    name: str = Field(pattern=FUNCTION_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of the arguments; left out = none")
    strict: bool | None = Field(None, description="arguments satisfy the schema always; default false")
    allowed_callers: Items[Literal["direct"]] | None = Field(None, description="only the model calls functions")
    async_: Literal[False] | None = Field(None, alias="async", description="not supported")
    defer_loading: Literal[False] | None = Field(None, description="not supported")
    output_schema: dict[str, Any] | None = Field(None, description="means nothing here")


OwnTool: TypeAlias = Annotated[FunctionTool, BeforeValidator(_functions_only)]


class FunctionName(RequestBody):
    type: Literal["function"]
    name: str = Field(pattern=FUNCTION_NAME)


class AllowedTools(RequestBody):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[Items[FunctionName], counted(limits.TOOLS)] = Field(min_length=1)


def _choice_kind(value: Any) -> str | None:
    kind = _type_of(value)
    return "string" if isinstance(value, str) else kind if kind in ("function", "allowed_tools") else None


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("string")]
    | Annotated[FunctionName, Tag("function")]
    | Annotated[AllowedTools, Tag("allowed_tools")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice",
        custom_error_message="must be 'none', 'auto', 'required' or an object of type function or allowed_tools",
    ),
]


class PlainFormat(RequestBody):
    type: Literal["text", "json_object"]


class JsonSchemaFormat(RequestBody):
    type: Literal["json_schema"]
    name: str = Field(pattern=FUNCTION_NAME)
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = Field(None, description="the answer satisfies the schema, whatever stands here")


Format: TypeAlias = Annotated[
    PlainFormat | JsonSchemaFormat,
    Discriminator(
        "type",
        custom_error_type="text_format",
        custom_error_message="must be an object whose type is text, json_object or json_schema",
    ),
]


class TextConfig(RequestBody):
    format: Format | None = Field(None, description="what the answer must look like")
    verbosity: Literal["medium"] | None = Field(None, description="not supported: but the default")


class Reasoning(RequestBody):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="for models whose chat template knows it"
    )
    summary: Literal["auto"] | None = Field(None, description="there is none: reasoning is shown as it is")
    generate_summary: Literal["auto"] | None = Field(None, description="the same by its old name")
    context: Literal["auto"] | None = Field(None, description="the model is shown what its chat template shows")
    mode: Literal["standard"] | None = Field(None, description="there is only one")


class ResponseStreamOptions(RequestBody):
    include_obfuscation: bool | None = Field(None, description="means nothing here: events are never padded")


Metadata: TypeAlias = Annotated[
    dict[Annotated[str, counted(limits.METADATA_KEY_CHARS)], Annotated[str, counted(limits.METADATA_CHARS)]],
    counted(limits.METADATA),
]


class ResponseRequest(RequestBody):
    """null means "not given" everywhere."""

    model: str | None = Field(None, description="the name in /v1/models; may be left out")
    input: Input = Field(description="a text, or what was said so far")
    instructions: str | None = Field(None, description="what the model is told beforehand")
    max_output_tokens: AnswerTokens | None = Field(None, description="default: as many as fit behind the prompt")
    temperature: Temperature | None = Field(None, description="0 = greedy; default 1")
    top_p: TopP | None = Field(None, description="sample from the likeliest tokens of this mass; default 1")
    top_logprobs: NumLogprobs | None = Field(None, description="so many likeliest tokens at each place; see include")
    include: Items[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = Field(
        None, description="more that the reply is to hold: the logprobs of its text; reasoning is never encrypted"
    )
    tools: Annotated[Items[OwnTool], counted(limits.TOOLS)] | None = Field(
        None, description="functions the model may call"
    )
    tool_choice: ToolChoice | None = Field(None, description="default auto where there are tools")
    parallel_tool_calls: bool | None = Field(None, description="more than one call in an answer; default true")
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: Metadata | None = Field(None, description="comes back with the reply")
    stream: bool | None = Field(None, description="server-sent events, as the answer is generated")
    stream_options: ResponseStreamOptions | None = Field(None, description="only with stream")
    user: str | None = Field(None, description="comes back with the reply")

    background: Literal[False] | None = Field(None, description="not supported")
    max_tool_calls: Annotated[int, within(limits.TOOL_CALLS)] | None = Field(
        None, description="means nothing here: the server runs no tools"
    )
    prompt_cache_key: str | None = Field(None, description="means nothing here: equal prefixes are found by themselves")
    prompt_cache_retention: str | None = Field(None, description="means nothing here")
    safety_identifier: str | None = Field(None, description="means nothing here")
    service_tier: Literal["auto", "default"] | None = Field(None, description="there is only one")
    store: Literal[False] | None = Field(None, description="nothing is ever stored")
    truncation: Literal["disabled"] | None = Field(None, description="nothing is ever cut")

    access_programs: NotSupported = Field(None, description="not supported")
    background_options: NotSupported = Field(None, description="not supported")
    context_management: NotSupported = Field(None, description="not supported")
    conversation: NotSupported = Field(None, description="not supported: nothing is ever stored")
    image: NotSupported = Field(None, description="not supported")
    moderation: NotSupported = Field(None, description="not supported")
    previous_response_id: NotSupported = Field(None, description="not supported: nothing is ever stored")
    prompt: NotSupported = Field(None, description="not supported: nothing is ever stored")
    prompt_cache_options: NotSupported = Field(None, description="not supported")

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or ())

    def warnings(self) -> list[str] | None:
        warnings = super().warnings() or []
        if "reasoning.encrypted_content" in (self.include or ()):
            warnings.append("include: there is no reasoning.encrypted_content, reasoning is told in the open")
        return warnings or None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_logprobs and not self.wants_logprobs:
            raise PydanticCustomError(
                "top_logprobs", "top_logprobs is allowed only if include has 'message.output_text.logprobs'"
            )
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options is allowed only with stream")
        return self


class TopLogprobReply(ReplyBody):
    token: str
    logprob: float
    bytes: list[int]


class LogprobReply(TopLogprobReply):
    top_logprobs: list[TopLogprobReply]


class OutputTextReply(ReplyBody):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(max_length=0)
    logprobs: list[LogprobReply]


class MessageItemReply(ReplyBody):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Status
    content: list[OutputTextReply]


class ReasoningTextReply(ReplyBody):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItemReply(ReplyBody):
    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[Any] = Field(max_length=0)
    content: list[ReasoningTextReply]


class FunctionCallReply(ReplyBody):
    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class IncompleteDetails(ReplyBody):
    reason: Literal["max_output_tokens"]


class ResponseError(ReplyBody):
    code: Literal["server_error", "invalid_prompt"]
    message: str


class InputTokensDetails(ReplyBody):
    cached_tokens: int = Field(description="prompt tokens that were taken from the prefix cache")
    cache_write_tokens: int


class OutputTokensDetails(ReplyBody):
    reasoning_tokens: int


class ResponseUsage(ReplyBody):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseReply(ReplyBody):
    """What the request said of itself stands in it again."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[MessageItemReply | ReasoningItemReply | FunctionCallReply]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    timings: Timings | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    user: str | None
    background: Literal[False]
    previous_response_id: None
    service_tier: Literal["default"]
    store: Literal[False]
    truncation: Literal["disabled"]
    warnings: list[str] | None = None
