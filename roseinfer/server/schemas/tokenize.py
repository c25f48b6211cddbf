"""Bodies of `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.schemas.base import ReplyBody, RequestBody, TokenId, counted
from roseinfer.server.schemas.chat import TemplateFields
from roseinfer.server.schemas.messages import Messages


class TokenizeRequest(TemplateFields):
    model: str | None = Field(None, description="the name in /v1/models; may be left out")
    prompt: Annotated[str, counted(limits.TOKENIZED_CHARS)] | None = Field(None, description="text; this or messages")
    messages: Messages | None = Field(None, description="a chat; this or prompt")  # type: ignore[assignment]
    add_special_tokens: bool | None = Field(
        None, description="begin as the model's tokenizer does; default true, for messages false"
    )
    return_token_strs: bool | None = Field(None, description="the text of each token, too")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("prompt or messages must be given, and not both", "prompt")
        return self


class TokenizeReply(ReplyBody):
    count: int = Field(description="how many tokens there are")
    max_model_len: int = Field(description="how many prompt and answer may have")
    tokens: list[int] = Field(description="their ids")
    token_strs: list[str] | None = Field(description="their texts, if they were asked for")
    warnings: list[str] | None = Field(None, description="what of the body was ignored")


class DetokenizeRequest(RequestBody):
    model: str | None = Field(None, description="the name in /v1/models; may be left out")
    tokens: Annotated[list[TokenId], counted(limits.DETOKENIZED_IDS, fail_fast=True)] = Field(
        description="ids of the model's vocabulary"
    )


class DetokenizeReply(ReplyBody):
    prompt: str = Field(description="the text of the tokens, names of special ones included")
    warnings: list[str] | None = Field(None, description="what of the body was ignored")
