"""Functions that a model may call, and whether it has to."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from roseinfer.core import limits
from roseinfer.server.schemas.base import RequestBody, counted

FUNCTION_NAME = rf"^[A-Za-z0-9_-]{{1,{limits.FUNCTION_NAME_CHARS.most}}}$"
# What a model has called may be anything.
FunctionNameText: TypeAlias = Annotated[str, counted(limits.FUNCTION_NAME_CHARS)]


class Function(RequestBody):
    name: str = Field(pattern=FUNCTION_NAME, description="what the model calls it by")
    description: str | None = Field(None, description="what it is good for")
    parameters: dict[str, Any] | None = Field(None, description="a JSON schema of the arguments; left out = none")
    strict: bool | None = Field(None, description="arguments satisfy the schema always")


class FunctionTool(RequestBody):
    type: Literal["function"] = Field(description="only functions can be called")
    function: Function = Field(description="the function")


class FunctionName(RequestBody):
    name: str = Field(pattern=FUNCTION_NAME, description="one of those in tools")


class NamedFunction(RequestBody):
    type: Literal["function"] = Field(description="only functions can be called")
    function: FunctionName = Field(description="the one that must be called")


def _choice_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "string"
    return "function" if isinstance(value, dict) and value.get("type") == "function" else None


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("string")] | Annotated[NamedFunction, Tag("function")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice",
        custom_error_message="must be 'none', 'auto', 'required' or the name of a function",
    ),
]
