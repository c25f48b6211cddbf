"""Logprobs in the shapes of OpenAI's completions, OpenAI's chats and vLLM's prompts.

Where there are likely tokens at each place, the list of the places is an iterator: written out it is large.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from roseinfer.core.messages import PromptLogprobs
from roseinfer.text import Tokenizer
from roseinfer.text.output_text import LikelyToken, TokenInfo
from roseinfer.text.token_info import continues_character, describe_token

LOWEST = -9999.0  # OpenAI's, for what cannot happen: JSON has no infinity


def completion_logprobs(tokens: Sequence[TokenInfo], start: int, *, with_top: bool) -> dict[str, Any]:
    """`start`: characters of the text before the answer."""
    return {
        "tokens": [info.token for info in tokens],
        "token_logprobs": [_finite(info.logprob) for info in tokens],
        "top_logprobs": map(_top_dict, tokens) if with_top else None,
        "text_offset": [start + info.text_offset for info in tokens],
    }


def echoed_logprobs(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], found: PromptLogprobs, num_top: int, *, skip_special: bool
) -> dict[str, Any]:
    """The prompt's tokens, and `num_top` likely ones at each place; nothing is known of the first place.

    `skip_special`: the echoed text does without the names of special tokens.
    """
    offsets = list(_offsets(tokenizer, prompt_ids, skip_special))
    names = [_name(tokenizer, token_id) for token_id in prompt_ids]
    logprobs = [_finite(logprob) for logprob in found.logprobs]
    return {
        "tokens": names,
        "token_logprobs": [None, *logprobs],
        "top_logprobs": chain([None], _echoed_tops(tokenizer, names[1:], found, num_top)) if num_top else None,
        "text_offset": offsets,
    }


def _offsets(tokenizer: Tokenizer, token_ids: Sequence[int], skip_special: bool) -> Iterator[int]:
    """Characters of the text before each token."""
    stream, num_chars = tokenizer.detokenizer(skip_special=skip_special), 0
    for token_id in token_ids:
        token_bytes = describe_token(tokenizer, token_id, skip_special=skip_special)[1]
        breaks_off = stream.has_open_character and token_bytes and not continues_character(token_bytes)
        yield num_chars + bool(breaks_off)  # what was begun becomes one U+FFFD before this token
        num_chars += len(stream.push([token_id]))


def _echoed_tops(
    tokenizer: Tokenizer, names: Sequence[str], found: PromptLogprobs, num_top: int
) -> Iterator[dict[str, float]]:
    for name, logprob, ids, logprobs in zip(names, found.logprobs, found.top_ids, found.top_logprobs, strict=True):
        top: dict[str, float] = {}
        for token_id, likely in list(zip(ids, logprobs, strict=True))[:num_top]:
            top.setdefault(_name(tokenizer, token_id), _finite(likely))
        top.setdefault(name, _finite(logprob))
        yield top


def join_logprobs(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Of two pieces of one text."""
    return {name: _joined(first[name], second[name]) for name in first}


def _joined(first: Any, second: Any) -> Any:
    if first is None:
        return None
    return first + second if isinstance(first, list) else chain(first, second)


def chat_logprobs(tokens: Iterable[TokenInfo]) -> dict[str, Any]:
    return {"content": map(chat_entry, tokens), "refusal": None}


def chat_entry(info: TokenInfo) -> dict[str, Any]:
    return {**_entry(info), "top_logprobs": [_entry(likely) for likely in info.top]}


def prompt_logprobs(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], found: PromptLogprobs, num_top: int
) -> Iterator[dict[str, Any] | None]:
    """vLLM's shape: by id, the `num_top` likeliest tokens at each place and the prompt's own."""
    num_places = len(prompt_ids) - 1
    tops = list(zip(found.top_ids, found.top_logprobs, strict=True)) or [([], [])] * num_places
    yield None
    for own_id, own_logprob, (ids, logprobs) in zip(prompt_ids[1:], found.logprobs, tops, strict=True):
        place = {str(own_id): _ranked(tokenizer, own_id, own_logprob, None)}
        for rank, (token_id, logprob) in enumerate(zip(ids[:num_top], logprobs[:num_top], strict=True), 1):
            place[str(token_id)] = _ranked(tokenizer, token_id, logprob, rank)
        yield place


def _ranked(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
    return {"logprob": _finite(logprob), "rank": rank, "decoded_token": _name(tokenizer, token_id)}


def _entry(info: TokenInfo | LikelyToken) -> dict[str, Any]:
    return {"token": info.token, "logprob": _finite(info.logprob), "bytes": list(info.token_bytes)}


def _top_dict(info: TokenInfo) -> dict[str, float]:
    """The chosen token is in it, likely or not."""
    top: dict[str, float] = {}
    for likely in info.top:  # different tokens may have one text, of which the likeliest counts
        top.setdefault(likely.token, _finite(likely.logprob))
    top.setdefault(info.token, _finite(info.logprob))
    return top


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    return describe_token(tokenizer, token_id)[0]


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
