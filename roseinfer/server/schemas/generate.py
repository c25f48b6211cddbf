"""Bodies of `/generate`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from roseinfer.core.sampling_params import MAX_SEED, MAX_TEMPERATURE
from roseinfer.inference_engine import DEFAULT_MAX_NEW_TOKENS
from roseinfer.server.schemas.base import MAX_INT32, RequestBody


class GenerateRequest(RequestBody):
    prompt: str = Field(description="text to continue; special tokens in it are read as such")
    max_new_tokens: int = Field(DEFAULT_MAX_NEW_TOKENS, ge=0, le=MAX_INT32, description="0 returns the prompt")
    temperature: float = Field(1.0, ge=0, le=MAX_TEMPERATURE, description="of sampling; 0 = greedy")
    top_k: int = Field(0, ge=0, le=MAX_INT32, description="0 = off")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens of this mass")
    stop_on_eos: bool = Field(True, description="false goes on behind the end-of-text token")
    do_sample: bool = Field(False, description="false = greedy")
    stream: bool = Field(False, description="text/plain, in pieces as it is generated")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="equal seeds give equal answers; null draws one")


class GenerateReply(BaseModel):
    text: str = Field(description="the prompt and its completion")
    warnings: list[str] | None = Field(None, description="what of the body was ignored")
