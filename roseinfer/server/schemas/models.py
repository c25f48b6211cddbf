"""Bodies of `/v1/models`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roseinfer.server.schemas.base import ReplyBody


class ModelReply(ReplyBody):
    id: str = Field(description="the model's name")
    object: Literal["model"] = Field(description="what this is")
    created: int = Field(description="when the server started, in seconds since 1970")
    owned_by: str = Field(description="always roseinfer")
    max_model_len: int = Field(description="how many tokens prompt and answer may have")


class ModelListReply(ReplyBody):
    object: Literal["list"] = Field(description="what this is")
    data: list[ModelReply] = Field(description="the models")
