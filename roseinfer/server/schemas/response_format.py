"""OpenAI's way to say what an answer must look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field

from roseinfer.server.schemas.base import RequestBody
from roseinfer.server.schemas.tools import FUNCTION_NAME


class TextFormat(RequestBody):
    type: Literal["text"] = Field(description="any text")


class JsonObjectFormat(RequestBody):
    type: Literal["json_object"] = Field(description="any JSON object")


class JsonSchema(RequestBody):
    name: str = Field(pattern=FUNCTION_NAME, description="what the schema is called")
    description: str | None = Field(None, description="what the answer is for")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="left out = any JSON object")
    strict: bool | None = Field(None, description="the answer satisfies the schema, whatever stands here")


class JsonSchemaFormat(RequestBody):
    type: Literal["json_schema"] = Field(description="JSON that satisfies a schema")
    json_schema: JsonSchema = Field(description="the schema")


ResponseFormat: TypeAlias = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat,
    Discriminator(
        "type",
        custom_error_type="response_format",
        custom_error_message="must be an object whose type is text, json_object or json_schema",
    ),
]
