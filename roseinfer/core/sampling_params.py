"""How one request wants its tokens chosen."""

from __future__ import annotations

from dataclasses import dataclass

from roseinfer.core.errors import InvalidRequestError

MAX_TEMPERATURE = 2.0
MAX_LOGPROBS = 20
MAX_STOP_TOKEN_IDS = 64
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Checked on construction: a wrong value is an `InvalidRequestError` that names the field.

    The order of operations is: logits → temperature → top_k → top_p → min_p → Gumbel noise → argmax.
    `temperature == 0` is greedy: the highest logit, the lowest token id on a tie.
    Logprobs are those of the raw logits, before temperature and filters.
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
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequestError(
                f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} ids, got {len(self.stop_token_ids)}",
                "stop_token_ids",
            )
        for token_id in self.stop_token_ids:
            check_int("stop_token_ids", token_id, 0, 2**31 - 1)
        if self.logprobs is not None:
            check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)

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


def _shown(value: object) -> str:
    """For messages: an integer of thousands of digits is neither printed nor converted, which Python would refuse."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.80}"
