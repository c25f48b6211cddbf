"""Bodies of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError
from roseinfer.server.schemas.base import MaxTokens, NotSupported, NumLogprobs, ReplyBody, TokenId, counted, within
from roseinfer.server.schemas.response_format import ResponseFormat
from roseinfer.server.schemas.sampling import SamplingFields
from roseinfer.server.schemas.usage import AnswerReply, PromptLogprob

Ids: TypeAlias = Annotated[list[TokenId], counted(limits.PROMPT_IDS, fail_fast=True)]


def _prompt_kind(value: Any) -> str | None:
    if not isinstance(value, list):
        return "text" if isinstance(value, str) else None
    first = value[0] if value else ""
    return "id lists" if isinstance(first, list) else "texts" if isinstance(first, str) else "ids"


Prompt: TypeAlias = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], counted(limits.PROMPTS, fail_fast=True), Tag("texts")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Ids], counted(limits.PROMPTS, fail_fast=True), Tag("id lists")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="must be a string, a list of strings, a list of token ids or a list of such lists",
    ),
]


class CompletionRequest(SamplingFields):
    prompt: Prompt = Field(description="text or token ids to continue, or several of them")
    max_tokens: MaxTokens | None = Field(None, description="default 16; 0 only scores the prompt")
    logprobs: NumLogprobs | None = Field(
        None, description="logprobs of the tokens, and of so many likeliest ones at each place"
    )
    echo: bool | None = Field(None, description="the text begins with the prompt")
    best_of: Annotated[int, within(limits.CHOICES)] | None = Field(None, description="the same as n, or left out")
    response_format: ResponseFormat | None = Field(None, description="what the answer must look like")
    suffix: NotSupported = Field(None, description="not supported: text behind the answer")
    prompt_embeds: NotSupported = Field(None, description="not supported")

    @model_validator(mode="after")
    def _check_best_of(self) -> Self:
        if self.best_of is not None and self.best_of != self.num_choices:
            raise InvalidRequestError("best_of must be n: this server does not choose among answers", "best_of")
        return self


class CompletionLogprobs(ReplyBody):
    tokens: list[str] = Field(description="the text of each token")
    token_logprobs: list[float | None] = Field(description="null for the first token of an echoed prompt")
    top_logprobs: list[dict[str, float] | None] | None = Field(description="null where logprobs is 0")
    text_offset: list[int] = Field(description="characters of the text before each token")


class CompletionChoice(ReplyBody):
    index: int = Field(description="prompt by prompt, n of each")
    text: str = Field(description="what follows the prompt")
    logprobs: CompletionLogprobs | None = Field(description="if they were asked for")
    finish_reason: Literal["stop", "length"] = Field(description="why it ends")
    stop_reason: int | str | None = Field(
        description="the stop string or token that ended it; null for the model's own"
    )
    token_ids: list[int] | None = Field(None, description="the answer's tokens, if they were asked for")
    prompt_token_ids: list[int] | None = Field(None, description="the prompt's tokens, if they were asked for")
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = Field(
        None, description="of each token of the prompt but the first, by token id"
    )


class CompletionReply(AnswerReply):
    object: Literal["text_completion"] = Field(description="what kind of reply")
    choices: list[CompletionChoice] = Field(description="the answers")
