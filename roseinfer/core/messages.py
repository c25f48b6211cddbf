"""What crosses the border between a client and the engine: plain data, nothing shared.

The engine knows token ids only. Commands go in, one `StepOutput` per step comes out, for all requests together.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]
GrammarKind = Literal["json_schema", "regex", "lark"]


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must look like, in a language that the engine's constraints compile."""

    kind: GrammarKind
    text: str  # a JSON schema as JSON, a regular expression, or a Lark grammar as llguidance reads it


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
    min_tokens: int = 0  # no stop token is chosen before so many tokens
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] = []  # none = all
    bad_words_ids: list[list[int]] = []
    num_prompt_logprobs: int = -1  # -1 = none
    grammar: Grammar | None = None
    priority: int = 0  # lower ones are served first
    cache_salt: str = ""
    tenant: str = ""  # who asks: what waits is shared out between them


class AbortRequest(msgspec.Struct, frozen=True, tag="abort"):
    """Forget a request; unknown ids are fine."""

    request_id: str


class PromptLogprobs(msgspec.Struct, frozen=True):
    """Of the prompt's tokens from the second on, as nothing says what the first follows."""

    logprobs: list[float]
    top_ids: list[list[int]] = []
    top_logprobs: list[list[float]] = []


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
    error_param: str | None = None  # the field that is to blame, if the caller is
    prompt_logprobs: PromptLogprobs | None = None  # with the first token, where they were asked for
    queue_seconds: float = 0.0  # with the first token: from `add` to the first step that computed something of it
    prefill_seconds: float = 0.0  # and from there to the first token
    decode_seconds: float = 0.0  # with the last token: from the first one to it


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
    num_prefix_queries: int = 0  # prompt tokens that were looked for in the prefix cache
    num_prefix_hits: int = 0  # and those found


Command = AddRequest | AbortRequest
