"""How a body wants its tokens chosen → `SamplingParams` and `TextOptions`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar
from roseinfer.core.sampling_params import SamplingParams
from roseinfer.server.schemas.sampling import SamplingFields
from roseinfer.text import Tokenizer
from roseinfer.text.output_text import TextOptions

_SAME = (
    *("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("min_tokens", "ignore_eos", "priority", "cache_salt"),
)


def sampling_params(
    body: SamplingFields,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """Raises InvalidRequestError naming the field."""
    given: dict[str, Any] = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    if body.logit_bias:
        given["logit_bias"] = {int(token_id): bias for token_id, bias in body.logit_bias.items()}
    if body.bad_words:
        given["bad_words_ids"] = tuple(_spellings(tokenizer, body.bad_words))
    if body.allowed_token_ids is not None:
        given["allowed_token_ids"] = tuple(body.allowed_token_ids)
    return SamplingParams(
        max_tokens=max_tokens,
        top_k=max(body.top_k or 0, 0),
        seed=None if body.seed is None else body.seed & (2**63 - 1),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        **given,
    )


def text_options(body: SamplingFields, *, skip_special_tokens: bool | None = None) -> TextOptions:
    """`skip_special_tokens`: unless the body says what it wants."""
    skip = skip_special_tokens if body.skip_special_tokens is None else body.skip_special_tokens
    return TextOptions(
        stop=body.stop_strings,
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=True if skip is None else skip,
        min_tokens=body.min_tokens or 0,
    )


def check_stream_fields(body: SamplingFields) -> None:
    """Raises InvalidRequestError for what goes with a stream only, or never with one."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options may be given only with stream", "stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidRequestError("prompt_logprobs may not be given with stream", "prompt_logprobs")


def _spellings(tokenizer: Tokenizer, words: Iterable[str]) -> Iterator[tuple[int, ...]]:
    """Each word as it begins a text and, where that differs only in its first token, as it follows a space."""
    for word in words:
        bare = word.lstrip() or word
        first = tuple(tokenizer.encode(bare, add_bos=False))
        yield first
        spaced = tuple(tokenizer.encode(" " + bare, add_bos=False))
        if len(spaced) == len(first) and spaced[0] != first[0]:
            yield spaced
