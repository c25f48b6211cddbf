"""Counts and times in replies."""

from __future__ import annotations

from pydantic import Field

from roseinfer.server.schemas.base import ReplyBody


class PromptTokensDetails(ReplyBody):
    cached_tokens: int = Field(description="prompt tokens that were taken from the prefix cache")


class Usage(ReplyBody):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Timings(ReplyBody):
    """Of several sequences the longest times, and the tokens per second of all together."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    ttft_ms: float | None = Field(description="from the request's arrival to the first token")
    tokens_per_second: float | None


class PromptLogprob(ReplyBody):
    logprob: float
    rank: int | None = Field(description="1 = the likeliest; null where it is not among those asked for")
    decoded_token: str
