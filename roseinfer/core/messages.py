"""What crosses the border between a client and the engine: plain data, nothing shared.

The engine knows token ids only. Commands go in, one `StepOutput` per step comes out, for all requests together.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]


class AddRequest(msgspec.Struct, frozen=True, tag="add"):
    """Run a request. `output_ids` are ids that were accepted before (a resubmission), usually none."""

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    choice: int
    stop_token_ids: list[int]  # the model's eos ids are in here unless they are to be ignored
    num_logprobs: int  # -1 = none
    output_ids: list[int] = []


class AbortRequest(msgspec.Struct, frozen=True, tag="abort"):
    """Forget a request; unknown ids are fine."""

    request_id: str


class TokenOutput(msgspec.Struct, frozen=True):
    """What one step brought one request: usually one token; a finished request is never mentioned again."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float] = []
    top_ids: list[list[int]] = []
    top_logprobs: list[list[float]] = []
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # set when a stop token ended it; that token is the last of token_ids
    num_cached_tokens: int = 0
    error: str | None = None


class StepOutput(msgspec.Struct, frozen=True, tag="step"):
    outputs: list[TokenOutput]


class EngineStats(msgspec.Struct, frozen=True, tag="stats"):
    """A snapshot for health, metrics and tests."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_cached_blocks: int
    num_total_blocks: int
    num_preemptions: int
    num_steps: int


Command = AddRequest | AbortRequest
