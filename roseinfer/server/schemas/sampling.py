"""What every OpenAI-compatible body may say about how tokens are chosen and when to stop."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from roseinfer.core import limits
from roseinfer.server.schemas.base import (
    Items,
    NotSupported,
    RequestBody,
    Temperature,
    TokenId,
    TopP,
    counted,
    within,
)

StopString: TypeAlias = Annotated[str, counted(limits.STOP_CHARS)]
BadWord: TypeAlias = Annotated[str, counted(limits.BAD_WORD_CHARS)]
StopStrings: TypeAlias = Annotated[list[StopString], counted(limits.STOP_STRINGS, fail_fast=True)]
TokenIdText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias: TypeAlias = Annotated[
    dict[TokenIdText, Annotated[float, within(limits.LOGIT_BIAS)]], counted(limits.BIASED_TOKENS)
]


def kind_of(value: Any) -> str | None:
    """For fields that take a string or a list: which of both it is, so that only its errors are told."""
    return "string" if isinstance(value, str) else "list" if isinstance(value, list) else None


Stop = Annotated[
    Annotated[StopString, Tag("string")] | Annotated[StopStrings, Tag("list")],
    Discriminator(kind_of, custom_error_type="stop_type", custom_error_message="must be a string or a list of strings"),
]


class StructuredOutputs(RequestBody):
    """vLLM's way to say what an answer must look like: exactly one of the fields."""

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="a JSON schema, or the text of one")
    regex: str | None = Field(None, min_length=1, description="a regular expression that the whole answer matches")
    choice: Annotated[Items[str], counted(limits.GRAMMAR_CHOICES)] | None = Field(
        None, description="the answer is one of these"
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
    temperature: Temperature | None = Field(None, description="0 = greedy; default 1")
    top_p: TopP | None = Field(None, description="sample from the likeliest tokens of this mass; default 1")
    top_k: Annotated[int, within(limits.OPEN_TOP_K)] | None = Field(
        None, description="sample from this many likeliest tokens; 0 and -1 = all, the default"
    )
    min_p: Annotated[float, within(limits.MIN_P)] | None = Field(
        None, description="least probability relative to the likeliest token's"
    )
    n: Annotated[int, within(limits.CHOICES)] | None = Field(None, description="choices per prompt; default 1")
    stop: Stop | None = Field(None, description="strings that end the answer and are no part of it")
    seed: Annotated[int, within(limits.SIGNED_SEED)] | None = Field(
        None, description="equal seeds give equal answers; the sign bit does not count"
    )
    presence_penalty: Annotated[float, within(limits.PRESENCE_PENALTY)] | None = Field(
        None, description="taken from the logits of tokens that the answer holds"
    )
    frequency_penalty: Annotated[float, within(limits.FREQUENCY_PENALTY)] | None = Field(
        None, description="the same, as often as the answer holds them"
    )
    repetition_penalty: Annotated[float, within(limits.REPETITION_PENALTY)] | None = Field(
        None, description="divides logits of tokens in prompt and answer"
    )
    logit_bias: Bias | None = Field(None, description="added to the logits of tokens, by id")
    min_tokens: Annotated[int, within(limits.MIN_TOKENS)] | None = Field(
        None, description="the answer does not end before"
    )
    stop_token_ids: Annotated[list[TokenId], counted(limits.STOP_TOKEN_IDS, fail_fast=True)] | None = Field(
        None, description="tokens that end the answer beside the model's own"
    )
    ignore_eos: bool | None = Field(None, description="go on behind the model's end-of-text token")
    include_stop_str_in_output: bool | None = Field(None, description="the stop string is part of the text")
    skip_special_tokens: bool | None = Field(None, description="special tokens are no part of the text; default true")
    add_special_tokens: bool | None = Field(
        None, description="begin the prompt as the model's tokenizer does; default true, for chats false"
    )
    bad_words: Annotated[list[BadWord], counted(limits.BAD_WORDS, fail_fast=True)] | None = Field(
        None, description="words that the answer must not hold"
    )
    allowed_token_ids: Annotated[list[TokenId], counted(limits.ALLOWED_TOKEN_IDS, fail_fast=True)] | None = Field(
        None, description="the only tokens to choose from"
    )
    prompt_logprobs: Annotated[int, within(limits.PROMPT_LOGPROBS)] | None = Field(
        None, description="logprobs of the prompt's tokens, and of so many likelier ones"
    )
    return_token_ids: bool | None = Field(None, description="ids beside the text")
    priority: Annotated[int, within(limits.PRIORITY)] | None = Field(
        None, description="lower ones are served first; default 0"
    )
    cache_salt: Annotated[str, counted(limits.CACHE_SALT_CHARS)] | None = Field(
        None, description="only requests with the same share cached prefixes"
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
