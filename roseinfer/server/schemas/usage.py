"""Counts and times in replies."""

from __future__ import annotations

from pydantic import Field

from roseinfer.server.schemas.base import ReplyBody


class PromptTokensDetails(ReplyBody):
    cached_tokens: int = Field(description="prompt tokens that were taken from the prefix cache")


class Usage(ReplyBody):
    prompt_tokens: int = Field(description="of all prompts, each counted once")
    completion_tokens: int = Field(description="of all choices")
    total_tokens: int = Field(description="both together")
    prompt_tokens_details: PromptTokensDetails = Field(description="what of the prompts was known already")


class Timings(ReplyBody):
    """Of several sequences the longest times, and the tokens per second of all together."""

    queue_ms: float = Field(description="waiting for the first step")
    prefill_ms: float = Field(description="from there to the first token")
    decode_ms: float = Field(description="from the first token to the last")
    ttft_ms: float | None = Field(description="from the request's arrival to the first token")
    tokens_per_second: float | None = Field(description="while decoding; null for a single token")


class AnswerReply(ReplyBody):
    """What replies of completions and chats have in common."""

    id: str = Field(description="names the reply; ends with the request's id")
    created: int = Field(description="when, in seconds since 1970")
    model: str = Field(description="the model's name")
    system_fingerprint: str = Field(description="equal ones give equal answers to equal seeds")
    usage: Usage = Field(description="how many tokens")
    timings: Timings = Field(description="how long it took")
    warnings: list[str] | None = Field(None, description="what of the body was ignored")


class PromptLogprob(ReplyBody):
    logprob: float = Field(description="natural logarithm of its probability")
    rank: int | None = Field(description="1 = the likeliest; null where it is not among those asked for")
    decoded_token: str = Field(description="its text")
