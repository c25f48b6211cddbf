"""The messages of a chat, as OpenAI's clients write them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from roseinfer.server.schemas.base import Items, NotSupported, RequestBody
from roseinfer.server.schemas.sampling import kind_of
from roseinfer.server.schemas.tools import FunctionNameText


class TextPart(RequestBody):
    type: Literal["text"] = Field(description="what kind of part")
    text: str = Field(description="what it says")


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
    Annotated[str, Tag("string")] | Annotated[Items[Part], Field(min_length=1), Tag("list")],
    Discriminator(
        kind_of, custom_error_type="content_type", custom_error_message="must be a string or a list of text parts"
    ),
]


class CalledFunction(RequestBody):
    name: FunctionNameText = Field(description="the function that was called")
    arguments: str = Field(description="JSON, as the model wrote it")


class ToolCall(RequestBody):
    id: str = Field(description="what the result's message refers to")
    type: Literal["function"] = Field("function", description="only functions can be called")
    function: CalledFunction = Field(description="the call")


class SystemMessage(RequestBody):
    role: Literal["system", "developer"] = Field(description="who speaks")
    content: Content = Field(description="what the model is to be")
    name: str | None = Field(None, description="for templates that read it")


class UserMessage(RequestBody):
    role: Literal["user"] = Field(description="who speaks")
    content: Content = Field(description="what is asked")
    name: str | None = Field(None, description="for templates that read it")


class AssistantMessage(RequestBody):
    role: Literal["assistant"] = Field(description="who speaks")
    content: Content | None = Field(None, description="may be left out where there are tool_calls")
    reasoning_content: str | None = Field(None, description="what the model thought before it answered")
    reasoning: str | None = Field(None, description="the same by another name")
    refusal: str | None = Field(None, description="means nothing here")
    tool_calls: Items[ToolCall] | None = Field(None, description="what the model has called")
    name: str | None = Field(None, description="for templates that read it")
    audio: NotSupported = Field(None, description="not supported")
    function_call: NotSupported = Field(None, description="not supported: see tool_calls")


class ToolMessage(RequestBody):
    role: Literal["tool"] = Field(description="who speaks")
    content: Content = Field(description="the result of a call")
    tool_call_id: str = Field(description="the call that it is the result of")
    name: str | None = Field(None, description="for templates that read it")


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

Messages: TypeAlias = Annotated[Items[Message], Field(min_length=1)]
