"""What every OpenAI-compatible body may say about how tokens are chosen and when to stop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from roseinfer.core.sampling_params import (
    MAX_BAD_WORDS,
    MAX_BIASED_TOKENS,
    MAX_CACHE_SALT,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_PENALTY,
    MAX_PRIORITY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_TOKEN_IDS,
    MAX_TEMPERATURE,
)
from roseinfer.server.schemas.base import MAX_IDS, MAX_INT32, Items, NotSupported, RequestBody

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_BAD_WORD_CHARS = 256
MAX_GRAMMAR_CHOICES = 1024

TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Bias = Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


def kind_of(value: Any) -> str | None:
    """For fields that take a string or a list: which of both it is, so that only its errors are told."""
    return "string" if isinstance(value, str) else "list" if isinstance(value, list) else None


Stop = Annotated[
    Annotated[StopString, Tag("string")] | Annotated[Items[StopString], Field(max_length=MAX_STOPS), Tag("list")],
    Discriminator(kind_of, custom_error_type="stop_type", custom_error_message="must be a string or a list of strings"),
]


class StructuredOutputs(RequestBody):
    """vLLM's way to say what an answer must look like: exactly one of the fields."""

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="a JSON schema, or the text of one")
    regex: str | None = Field(None, min_length=1, description="a regular expression that the whole answer matches")
    choice: Items[str] | None = Field(
        None, min_length=1, max_length=MAX_GRAMMAR_CHOICES, description="the answer is one of these"
    )
    grammar: str | None = Field(None, min_length=1, description="a grammar in Lark's or GBNF syntax")
    json_object: bool | None = Field(None, description="the answer is any JSON object")

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [self.json_, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(value is not None for value in given) != 1:
            raise PydanticCustomError(
                "structured_outputs", "takes exactly one of json, regex, choice, grammar and json_object"
            )
        return self


class StreamOptions(RequestBody):
    include_usage: bool | None = Field(None, description="one more chunk at the end, with the usage of all choices")
    continuous_usage_stats: bool | None = Field(None, description="the usage so far in every chunk")
    include_obfuscation: bool | None = Field(None, description="means nothing here: chunks are never padded")


class SamplingFields(RequestBody):
    """null means "not given" everywhere."""

    model: str | None = Field(None, description="the name in /v1/models; may be left out")
    temperature: float | None = Field(None, ge=0, le=MAX_TEMPERATURE, description="0 = greedy; default 1")
    top_p: float | None = Field(
        None, gt=0, le=1, description="sample from the likeliest tokens of this mass; default 1"
    )
    top_k: int | None = Field(
        None, ge=-1, le=MAX_INT32, description="sample from this many likeliest tokens; 0 and -1 = all, the default"
    )
    min_p: float | None = Field(None, ge=0, le=1, description="least probability relative to the likeliest token's")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="choices per prompt; default 1")
    stop: Stop | None = Field(None, description="strings that end the answer and are no part of it")
    seed: Seed | None = Field(None, description="equal seeds give equal answers; the sign bit does not count")
    presence_penalty: float | None = Field(
        None, ge=-MAX_PENALTY, le=MAX_PENALTY, description="taken from the logits of tokens that the answer holds"
    )
    frequency_penalty: float | None = Field(
        None, ge=-MAX_PENALTY, le=MAX_PENALTY, description="the same, as often as the answer holds them"
    )
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=MAX_REPETITION_PENALTY, description="divides logits of tokens in prompt and answer"
    )
    logit_bias: (
        Annotated[dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Bias], Field(max_length=MAX_BIASED_TOKENS)]
        | None
    ) = Field(None, description="added to the logits of tokens, by id")
    min_tokens: int | None = Field(None, ge=0, le=MAX_INT32, description="the answer does not end before")
    stop_token_ids: Items[TokenId] | None = Field(
        None, max_length=MAX_STOP_TOKEN_IDS, description="tokens that end the answer beside the model's own"
    )
    ignore_eos: bool | None = Field(None, description="go on behind the model's end-of-text token")
    include_stop_str_in_output: bool | None = Field(None, description="the stop string is part of the text")
    skip_special_tokens: bool | None = Field(None, description="special tokens are no part of the text; default true")
    add_special_tokens: bool | None = Field(
        None, description="begin the prompt as the model's tokenizer does; default true, for chats false"
    )
    bad_words: Items[Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_CHARS)]] | None = Field(
        None, max_length=MAX_BAD_WORDS, description="words that the answer must not hold"
    )
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)] | None = Field(
        None, description="the only tokens to choose from"
    )
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="logprobs of the prompt's tokens, and of so many likelier ones"
    )
    return_token_ids: bool | None = Field(None, description="ids beside the text")
    priority: int | None = Field(
        None, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="lower ones are served first; default 0"
    )
    cache_salt: str | None = Field(
        None, min_length=1, max_length=MAX_CACHE_SALT, description="only requests with the same share cached prefixes"
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="what the answer must look like")
    stream: bool | None = Field(None, description="server-sent events, as the answer is generated")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    user: str | None = Field(None, description="means nothing here")

    use_beam_search: Literal[False] | None = Field(None, description="not supported: beam search")
    truncate_prompt_tokens: NotSupported = Field(None, description="not supported: nothing is ever cut")
    logits_processors: NotSupported = Field(None, description="not supported")
    guided_json: NotSupported = Field(None, description="not supported: see structured_outputs")
    guided_regex: NotSupported = Field(None, description="not supported: see structured_outputs")
    guided_choice: NotSupported = Field(None, description="not supported: see structured_outputs")
    guided_grammar: NotSupported = Field(None, description="not supported: see structured_outputs")
    guided_decoding_backend: NotSupported = Field(None, description="not supported")

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
