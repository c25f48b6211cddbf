"""Bodies of `/v1/models`."""

from __future__ import annotations

from typing import Literal

from roseinfer.server.schemas.base import ReplyBody


class ModelReply(ReplyBody):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelListReply(ReplyBody):
    object: Literal["list"]
    data: list[ModelReply]
