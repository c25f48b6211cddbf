"""Bodies of `/generate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from roseinfer.core import limits
from roseinfer.inference_engine import DEFAULT_MAX_NEW_TOKENS
from roseinfer.server.schemas.base import MaxTokens, RequestBody, Temperature, TopK, TopP, within


class GenerateRequest(RequestBody):
    prompt: str = Field(description="text to continue; special tokens in it are read as such")
    max_new_tokens: MaxTokens = Field(DEFAULT_MAX_NEW_TOKENS, description="0 returns the prompt")
    temperature: Temperature = Field(1.0, description="of sampling; 0 = greedy")
    top_k: TopK = Field(0, description="0 = off")
    top_p: TopP = Field(1.0, description="sample from the likeliest tokens of this mass")
    stop_on_eos: bool = Field(True, description="false goes on behind the end-of-text token")
    do_sample: bool = Field(False, description="false = greedy")
    stream: bool = Field(False, description="text/plain, in pieces as it is generated")
    seed: Annotated[int, within(limits.SEED)] | None = Field(
        None, description="equal seeds give equal answers; null draws one"
    )


class GenerateReply(BaseModel):
    text: str = Field(description="the prompt and its completion")
    warnings: list[str] | None = Field(None, description="what of the body was ignored")
