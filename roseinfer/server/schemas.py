"""What bodies of roseinfer's own routes look like. Types are strict: `true` is no 1 and `"1"` is no number."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from roseinfer.core.sampling_params import MAX_SEED, MAX_TEMPERATURE
from roseinfer.inference_engine import DEFAULT_MAX_NEW_TOKENS

MAX_INT32 = 2**31 - 1
MAX_WARNINGS = 16
MAX_NAME_CHARS = 64


class RequestBody(BaseModel):
    """A body that tells its caller which of its fields mean nothing here."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    def warnings(self) -> list[str] | None:
        unknown = list(self.model_extra or {})[:MAX_WARNINGS]
        return [f"unknown field {name[:MAX_NAME_CHARS]!r} was ignored" for name in unknown] or None


class GenerateRequest(RequestBody):
    prompt: str
    max_new_tokens: int = Field(DEFAULT_MAX_NEW_TOKENS, ge=0, le=MAX_INT32)
    temperature: float = Field(1.0, ge=0, le=MAX_TEMPERATURE)
    top_k: int = Field(0, ge=0, le=MAX_INT32, description="0 = off")
    top_p: float = Field(1.0, gt=0, le=1)
    stop_on_eos: bool = True
    do_sample: bool = Field(False, description="false = greedy")
    stream: bool = False
    seed: int | None = Field(None, ge=0, le=MAX_SEED)


class GenerateReply(BaseModel):
    text: str = Field(description="the prompt and its completion")
    warnings: list[str] | None = None


class HealthReply(BaseModel):
    status: str
