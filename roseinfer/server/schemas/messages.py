"""The messages of a chat, as OpenAI's clients write them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from roseinfer.server.schemas.base import NotSupported, RequestBody
from roseinfer.server.schemas.sampling import kind_of


class TextPart(RequestBody):
    type: Literal["text"]
    text: str


def _part_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    return "text" if kind == "text" else None


Part = Annotated[
    Annotated[TextPart, Tag("text")],
    Discriminator(
        _part_kind,
        custom_error_type="part_type",
        custom_error_message="only parts of type 'text' are supported: the model reads no images, audio or files",
    ),
]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[Part], Field(min_length=1), Tag("list")],
    Discriminator(
        kind_of, custom_error_type="content_type", custom_error_message="must be a string or a list of text parts"
    ),
]


class CalledFunction(RequestBody):
    name: str = Field(min_length=1, max_length=64)
    arguments: str = Field(description="JSON, as the model wrote it")


class ToolCall(RequestBody):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(RequestBody):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(RequestBody):
    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(RequestBody):
    role: Literal["assistant"]
    content: Content | None = Field(None, description="may be left out where there are tool_calls")
    reasoning_content: str | None = Field(None, description="what the model thought before it answered")
    reasoning: str | None = Field(None, description="the same by another name")
    refusal: str | None = Field(None, description="means nothing here")
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    audio: NotSupported = Field(None, description="not supported")
    function_call: NotSupported = Field(None, description="not supported: see tool_calls")


class ToolMessage(RequestBody):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


def _role_of(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else None
    role = "system" if role == "developer" else role
    return role if role in ("system", "user", "assistant", "tool") else None


Message: TypeAlias = Annotated[
    Annotated[SystemMessage, Tag("system")]
    | Annotated[UserMessage, Tag("user")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[ToolMessage, Tag("tool")],
    Discriminator(
        _role_of,
        custom_error_type="message_role",
        custom_error_message="must be an object whose role is system, developer, user, assistant or tool",
    ),
]
