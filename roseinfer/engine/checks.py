"""What a request must satisfy, checked by the client and again at the engine's door."""

from __future__ import annotations

from collections.abc import Sequence

from roseinfer.core.errors import ContextLengthError, InvalidRequestError
from roseinfer.core.messages import AddRequest
from roseinfer.core.request import int32_list
from roseinfer.core.sampling_params import MAX_STOP_TOKEN_IDS, SamplingParams, check_int

MAX_CHOICE = 2**16 - 1


def check_request(request: AddRequest, vocab_size: int, max_model_len: int) -> None:
    """Raises `InvalidRequestError` unless the engine can run the request as it is."""
    check_ids(request, vocab_size, max_model_len)
    check_int("num_logprobs", request.num_logprobs, -1, vocab_size)
    check_int("num_prompt_logprobs", request.num_prompt_logprobs, -1, vocab_size)
    check_int("max_tokens", request.max_tokens, 0, 2**31 - 1)
    check_int("min_tokens", request.min_tokens, 0, 2**31 - 1)
    SamplingParams(
        # Which of the two is the higher one is the caller's matter: `max_tokens` may have been cut to what fits.
        max_tokens=max(request.max_tokens, request.min_tokens),
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        seed=request.seed,
        logprobs=_asked_for(request.num_logprobs),
        prompt_logprobs=_asked_for(request.num_prompt_logprobs),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
        bad_words_ids=tuple(map(tuple, request.bad_words_ids)),
        grammar=request.grammar,
        priority=request.priority,
        cache_salt=request.cache_salt,
    )


def _asked_for(num_logprobs: int) -> int | None:
    return None if num_logprobs < 0 else num_logprobs


def check_ids(request: AddRequest, vocab_size: int, max_model_len: int) -> None:
    """What is left to check of a request that was made from `SamplingParams`."""
    check_token_ids("prompt", request.prompt_ids, vocab_size)
    check_token_ids("output_ids", request.output_ids, vocab_size)
    check_token_ids("stop_token_ids", request.stop_token_ids, vocab_size)
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
    check_int("stop_token_ids", len(request.stop_token_ids), 0, 2 * MAX_STOP_TOKEN_IDS)  # the model's and its own
    check_int("choice", request.choice, 0, MAX_CHOICE)


def _check_words(words: Sequence[Sequence[int]], vocab_size: int) -> None:
    for word in words:
        check_token_ids("bad_words", word, vocab_size)
        if not word:
            raise InvalidRequestError("bad_words must not hold a word without tokens", "bad_words")


def check_token_ids(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Every id an integer inside the vocabulary."""
    if not isinstance(token_ids, list | tuple):
        raise InvalidRequestError(f"{name} must be a list of token ids", name)
    try:
        ids = int32_list(token_ids)
    except OverflowError:
        raise InvalidRequestError(f"{name}: an id is not in the vocabulary of {vocab_size} tokens", name) from None
    except TypeError:
        raise InvalidRequestError(f"{name} must be a list of token ids", name) from None
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
