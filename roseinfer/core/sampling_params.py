"""How one request wants its tokens chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.messages import Grammar

MAX_TEMPERATURE = 2.0
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 10.0
MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_BAD_WORDS = 64  # a word may be spelled in two ways, with and without a space before it
MAX_BAD_WORD_LEN = 64  # tokens
MAX_PRIORITY = 1_000_000
MAX_CACHE_SALT = 256  # characters
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_REGEX_BYTES = 1024
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Checked on construction: a wrong value is an `InvalidRequestError` that names the field.

    The order of operations is: logits → repetition penalty → presence and frequency penalties → logit_bias → what is
    forbidden (min_tokens, bad words, allowed_token_ids, grammar) → temperature → top_k → top_p → min_p → Gumbel noise →
    argmax. `temperature == 0` is greedy: the highest logit, the lowest token id on a tie.
    Logprobs are those of the raw logits, before all of this.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None  # None = the engine's client draws one
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # None = none, 0 = the sampled token's, n = also the n most likely
    prompt_logprobs: int | None = None  # the same of the prompt's tokens
    min_tokens: int = 0
    presence_penalty: float = 0.0  # of tokens that the answer holds already
    frequency_penalty: float = 0.0  # of the same, as often as it holds them
    repetition_penalty: float = 1.0  # of tokens in prompt and answer; divides positive logits, multiplies negative ones
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None  # None = all
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    grammar: Grammar | None = None
    priority: int = 0  # lower ones are served first
    cache_salt: str = ""  # only requests with the same one share cached prefixes

    def __post_init__(self) -> None:
        check_int("max_tokens", self.max_tokens, 0, 2**31 - 1)
        _check_float("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        check_int("top_k", self.top_k, 0, 2**31 - 1)
        _check_float("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidRequestError("top_p must be greater than 0 and at most 1, got 0", "top_p")
        _check_float("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            check_int("seed", self.seed, 0, MAX_SEED)
        _check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        if self.logprobs is not None:
            check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            check_int("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        check_int("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be at most max_tokens, which is {self.max_tokens}, got {self.min_tokens}",
                "min_tokens",
            )
        _check_float("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_float("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_float("repetition_penalty", self.repetition_penalty, 0.01, MAX_REPETITION_PENALTY)
        _check_count("logit_bias", self.logit_bias, MAX_BIASED_TOKENS)
        for token_id, bias in self.logit_bias.items():
            check_int("logit_bias", token_id, 0, 2**31 - 1)
            _check_float("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise InvalidRequestError(
                    "allowed_token_ids must not be empty: there would be no token to choose", "allowed_token_ids"
                )
            _check_ids("allowed_token_ids", self.allowed_token_ids, 2**31 - 1)
        _check_count("bad_words", self.bad_words_ids, 2 * MAX_BAD_WORDS)
        for word in self.bad_words_ids:
            _check_ids("bad_words", word, MAX_BAD_WORD_LEN)
        if self.grammar is not None:
            _check_grammar(self.grammar)
        check_int("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        if not isinstance(self.cache_salt, str) or len(self.cache_salt) > MAX_CACHE_SALT:
            raise InvalidRequestError(
                f"cache_salt must be a string of at most {MAX_CACHE_SALT} characters", "cache_salt"
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Raises `InvalidRequestError` naming the field unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {_shown(value)}", name)
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must be between {low} and {high}, got {_shown(value)}", name)


def _check_float(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f"{name} must be a number, got {_shown(value)}", name)
    if not low <= value <= high:  # false for a NaN too
        raise InvalidRequestError(f"{name} must be between {low} and {high}, got {_shown(value)}", name)


def _check_count(name: str, values: Collection[object], most: int) -> None:
    if len(values) > most:
        raise InvalidRequestError(f"{name} takes at most {most} entries, got {len(values)}", name)


def _check_ids(name: str, ids: Collection[int], most: int) -> None:
    _check_count(name, ids, most)
    for token_id in ids:
        check_int(name, token_id, 0, 2**31 - 1)


def _check_grammar(grammar: Grammar) -> None:
    most = MAX_REGEX_BYTES if grammar.kind == "regex" else MAX_GRAMMAR_BYTES
    num_bytes = len(grammar.text.encode("utf-8", "replace"))
    if num_bytes > most:
        raise InvalidRequestError(f"the {grammar.kind} must be at most {most} bytes, got {num_bytes}", "grammar")


def _shown(value: object) -> str:
    """For messages: an integer of thousands of digits is neither printed nor converted, which Python would refuse."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.80}"
