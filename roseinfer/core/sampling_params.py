"""How one request wants its tokens chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import get_args

from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError
from roseinfer.core.limits import Cap
from roseinfer.core.messages import Grammar, GrammarKind

MAX_SEED = limits.SEED.most

_NUMBERS = (
    *(limits.MAX_TOKENS, limits.MIN_TOKENS, limits.TEMPERATURE, limits.TOP_K, limits.TOP_P, limits.MIN_P),
    *(limits.PRESENCE_PENALTY, limits.FREQUENCY_PENALTY, limits.REPETITION_PENALTY, limits.PRIORITY),
)
_NUMBERS_OR_NONE = (limits.SEED, limits.LOGPROBS, limits.PROMPT_LOGPROBS)


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
        for cap in _NUMBERS:
            cap.check(getattr(self, cap.name))
        for cap in _NUMBERS_OR_NONE:
            if getattr(self, cap.name) is not None:
                cap.check(getattr(self, cap.name))
        if self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be at most max_tokens, which is {self.max_tokens}, got {self.min_tokens}",
                "min_tokens",
            )
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequestError(f"ignore_eos must be true or false, got {self.ignore_eos!r:.80}", "ignore_eos")
        _check_ids(self.stop_token_ids, limits.STOP_TOKEN_IDS)
        _check_bias(self.logit_bias)
        if self.allowed_token_ids is not None:
            _check_allowed(self.allowed_token_ids)
        _check_words(self.bad_words_ids)
        if self.grammar is not None:
            _check_grammar(self.grammar)
        limits.CACHE_SALT_CHARS.check_count(len(check_text(self.cache_salt, "cache_salt")))

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0


def check_text(text: object, name: str) -> str:
    """`text` itself. Raises InvalidRequestError unless it is a string and without lone surrogates."""
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} must be a string, got {limits.shown(text)}", name)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"{name} has a lone surrogate at character {error.start}", name) from None
    return text


def _check_ids(ids: Collection[int], cap: Cap[int]) -> None:
    if not isinstance(ids, list | tuple):
        raise InvalidRequestError(f"{cap.name} must be a list of token ids, got {limits.shown(ids)}", cap.name)
    cap.check_count(len(ids))
    if not set(map(type, ids)) <= {int} or min(ids, default=0) < 0 or max(ids, default=0) > limits.TOKEN_ID.most:
        for token_id in ids:
            limits.TOKEN_ID.check(token_id, cap.name)


def _check_bias(bias: Mapping[int, float]) -> None:
    if not isinstance(bias, Mapping):
        raise InvalidRequestError(f"logit_bias must map token ids to numbers, got {limits.shown(bias)}", "logit_bias")
    limits.BIASED_TOKENS.check_count(len(bias))
    for token_id, value in bias.items():
        limits.TOKEN_ID.check(token_id, "logit_bias")
        limits.LOGIT_BIAS.check(value)


def _check_allowed(ids: Collection[int]) -> None:
    _check_ids(ids, limits.ALLOWED_TOKEN_IDS)
    if not ids:
        raise InvalidRequestError(
            "allowed_token_ids must not be empty: there would be no token to choose", "allowed_token_ids"
        )


def _check_words(words: Collection[Collection[int]]) -> None:
    if not isinstance(words, list | tuple):
        raise InvalidRequestError(f"bad_words must be a list of words, got {limits.shown(words)}", "bad_words")
    limits.BAD_WORD_SPELLINGS.check_count(len(words))
    for word in words:
        _check_ids(word, limits.BAD_WORD_TOKENS)


def _check_grammar(grammar: Grammar) -> None:
    if not isinstance(grammar, Grammar) or grammar.kind not in get_args(GrammarKind):
        raise InvalidRequestError(f"grammar must be one of {', '.join(get_args(GrammarKind))}", "grammar")
    num_bytes = len(check_text(grammar.text, "grammar").encode())
    cap = limits.REGEX_BYTES if grammar.kind == "regex" else limits.GRAMMAR_BYTES
    if num_bytes > cap.most:
        raise InvalidRequestError(f"the {grammar.kind} must be at most {cap.most} bytes, got {num_bytes}", "grammar")
