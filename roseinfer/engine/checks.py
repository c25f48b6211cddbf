"""What a request must satisfy, checked by the client and again at the engine's door."""

from __future__ import annotations

from collections.abc import Sequence

from roseinfer.core import limits
from roseinfer.core.errors import ContextLengthError, InvalidRequestError
from roseinfer.core.messages import AddRequest
from roseinfer.core.request import int32_list
from roseinfer.core.sampling_params import SamplingParams, check_text


def check_request(request: AddRequest, vocab_size: int, max_model_len: int) -> None:
    """Raises `InvalidRequestError` unless the engine can run the request as it is, whatever its fields hold."""
    check_ids(request, vocab_size, max_model_len)
    limits.REQUEST_ID_CHARS.check_count(len(check_text(request.request_id, "request_id")))
    limits.TENANT_CHARS.check_count(len(check_text(request.tenant, "tenant")))
    own_salt = check_text(request.cache_salt, "cache_salt").removeprefix(f"{request.tenant}/")
    limits.MAX_TOKENS.check(request.max_tokens)
    limits.MIN_TOKENS.check(request.min_tokens)
    limits.SEED.check(request.seed)
    SamplingParams(
        # Which of the two is the higher one is the caller's matter: `max_tokens` may have been cut to what fits.
        max_tokens=max(request.max_tokens, request.min_tokens),
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        seed=request.seed,
        logprobs=_asked_for("num_logprobs", request.num_logprobs, vocab_size),
        prompt_logprobs=_asked_for("num_prompt_logprobs", request.num_prompt_logprobs, vocab_size),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
        bad_words_ids=tuple(map(tuple, request.bad_words_ids)),
        grammar=request.grammar,
        priority=request.priority,
        cache_salt=own_salt,
    )
    check_prompt_logprobs(request.num_prompt_logprobs, len(request.prompt_ids))


def _asked_for(name: str, num_logprobs: int, vocab_size: int) -> int | None:
    limits.Cap(name, -1, vocab_size, "there are no more tokens").check(num_logprobs)
    return None if num_logprobs < 0 else num_logprobs


def check_prompt_logprobs(num_likeliest: int | None, num_prompt_tokens: int) -> None:
    """Raises InvalidRequestError for more of them than a reply may hold; None and -1 are none."""
    count = 0 if num_likeliest is None else (num_likeliest + 1) * num_prompt_tokens
    limits.PROMPT_LOGPROBS_IN_ALL.check_count(count)


def check_ids(request: AddRequest, vocab_size: int, max_model_len: int) -> None:
    """What is left to check of a request that was made from `SamplingParams`."""
    check_token_ids("prompt", request.prompt_ids, vocab_size)
    check_token_ids("output_ids", request.output_ids, vocab_size)
    check_token_ids("stop_token_ids", request.stop_token_ids, vocab_size)
    if not isinstance(request.logit_bias, dict):
        raise InvalidRequestError("logit_bias must map token ids to numbers", "logit_bias")
    check_token_ids("logit_bias", list(request.logit_bias), vocab_size)
    check_token_ids("allowed_token_ids", request.allowed_token_ids, vocab_size)
    _check_words(request.bad_words_ids, vocab_size)
    check_length(len(request.prompt_ids), max_model_len)
    check_length(len(request.prompt_ids) + len(request.output_ids), max_model_len + 1)
    if len(request.allowed_token_ids) > vocab_size:
        raise InvalidRequestError(
            f"allowed_token_ids has {len(request.allowed_token_ids)} ids, there are {vocab_size} tokens",
            "allowed_token_ids",
        )
    limits.ALL_STOP_TOKEN_IDS.check_count(len(request.stop_token_ids))
    limits.CHOICE_INDEX.check(request.choice)


def _check_words(words: Sequence[Sequence[int]], vocab_size: int) -> None:
    if not isinstance(words, list | tuple):
        raise InvalidRequestError("bad_words must be a list of lists of token ids", "bad_words")
    for word in words:
        check_token_ids("bad_words", word, vocab_size)
        if not word:
            raise InvalidRequestError("bad_words must not hold a word without tokens", "bad_words")


def check_token_ids(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Every id an integer inside the vocabulary."""
    if not isinstance(token_ids, list | tuple) or not set(map(type, token_ids)) <= {int}:
        raise InvalidRequestError(f"{name} must be a list of token ids", name)
    try:
        ids = int32_list(token_ids)
    except OverflowError:
        raise InvalidRequestError(f"{name}: an id is not in the vocabulary of {vocab_size} tokens", name) from None
    for outside in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= outside < vocab_size:
            raise InvalidRequestError(f"{name}: {outside} is not in the vocabulary of {vocab_size} tokens", name)


def check_length(num_prompt_tokens: int, max_model_len: int) -> None:
    """A prompt that leaves no room for one token can never be served."""
    if num_prompt_tokens == 0:
        raise InvalidRequestError("the prompt is empty", "prompt")
    if num_prompt_tokens >= max_model_len:
        raise prompt_too_long(str(num_prompt_tokens), max_model_len)


def prompt_too_long(count: str, max_model_len: int) -> ContextLengthError:
    """`count`: how many tokens the prompt has, as far as that is known."""
    return ContextLengthError(
        f"the prompt has {count} tokens, but the context length is {max_model_len} tokens, "
        "prompt and completion together (the smaller of the model's and the KV cache's)"
    )
