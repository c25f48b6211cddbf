"""One sequence on its way through the engine: its tokens, how far they are computed, and the blocks it holds.

There is no phase and no status: a request runs while it holds blocks, and what a step has to do for it is the
difference between `num_tokens` and `num_computed_tokens`.

While a step is under way that samples a request's next token, a placeholder stands for it at the end of `token_ids`, a
negative number. The request is then as far as it will be: with that token, and with what the step computes.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

from roseinfer.core.batch import UInt32Array
from roseinfer.core.messages import AddRequest, PromptLogprobs

# Grows at the end like a list, and is int32 in memory: a step copies slices of it and converts nothing.
Int32List: TypeAlias = "array[int]"


def int32_list(values: Iterable[int] = ()) -> Int32List:
    return array("i", values)


class Constraint(Protocol):
    """What a grammar allows next, given the tokens accepted so far. Each request has its own."""

    def accept(self, token_id: int) -> None:
        """The next token; raises EngineError if the grammar refuses it. Stop tokens are not told."""

    def fill_mask(self, row: UInt32Array) -> None:
        """Sets the bits of the tokens that are allowed next, and clears the others."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow."""


class Request:
    """One sequence. `order` says who goes first: by priority, then by age.

    The ids in `params` must have been checked: they are stored as int32 here and index tables in the kernels.
    """

    __slots__ = (
        "added_at",
        "block_digests",
        "block_table",
        "cache_salt",
        "constraint",
        "first_token_at",
        "is_edited",
        "logit_rules",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_given_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_unscored_tokens",
        "order",
        "params",
        "prompt_logprobs",
        "started_at",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(self, params: AddRequest, arrival: int = 0) -> None:
        self.params = params
        self.order = (params.priority, arrival)
        self.cache_salt = params.cache_salt.encode("utf-8", "surrogatepass")
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.token_ids = int32_list(params.prompt_ids + params.output_ids)
        self.num_prompt_tokens = len(params.prompt_ids)
        self.num_given_tokens = len(self.token_ids)  # prompt and accepted output; the next is the first token of ours
        self.num_computed_tokens = 0  # leading tokens whose keys and values lie in the blocks
        self.num_cached_tokens = 0  # of the prompt, taken from the prefix cache before the first token
        self.num_preemptions = 0
        self.block_table = int32_list()
        self.block_digests: list[bytes] = []  # of the leading full blocks, filled by the prefix cache on demand
        self.is_edited = _wants_edits(params)
        self.constraint: Constraint | None = None
        self.logit_rules: Any = None  # made of `params` and kept by the sampling table
        wants_scores = params.num_prompt_logprobs >= 0
        self.prompt_logprobs = PromptLogprobs([]) if wants_scores else None
        self.num_unscored_tokens = self.num_prompt_tokens - 1 if wants_scores else 0  # the prompt's last ones
        self.added_at = time.monotonic()
        self.started_at = 0.0  # when it first was in a step; 0 = not yet
        self.first_token_at = 0.0

    def __repr__(self) -> str:
        return f"Request({self.request_id!r}, {self.num_computed_tokens} of {self.num_tokens} tokens computed)"

    @property
    def request_id(self) -> str:
        return self.params.request_id

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens to catch up with: 1 while decoding, more for a prompt; never 0 while it runs."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_scored_tokens(self) -> int:
        """Leading tokens that have given all the prompt's logprobs they can; the next ones' logits are wanted."""
        return self.num_prompt_tokens - 1 - self.num_unscored_tokens

    def num_scores_of(self, count: int) -> int:
        """How many of the next `count` tokens are followed by a prompt token whose logprob is wanted."""
        stop = min(self.num_computed_tokens + count, self.num_prompt_tokens - 1)
        return max(0, stop - self.num_scored_tokens)

    def num_logits_of(self, count: int) -> int:
        """How many of the next `count` tokens want a row of logits."""
        return self.num_scores_of(count) + (count == self.num_uncomputed_tokens)

    def num_tokens_within(self, num_logits: int) -> int:
        """How many of the next tokens want no more rows of logits than these."""
        if num_logits < self.num_unscored_tokens:
            return self.num_scored_tokens - self.num_computed_tokens + num_logits
        return self.num_uncomputed_tokens - (num_logits == self.num_unscored_tokens)

    @property
    def stop_token_id(self) -> int | None:
        """The stop token that the output ends with."""
        last = self.token_ids[-1]
        return last if self.num_output_tokens and last in self.stop_token_ids else None

    @property
    def is_running(self) -> bool:
        return len(self.block_table) > 0

    @property
    def prompt_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens].tolist()

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :].tolist()


def _wants_edits(params: AddRequest) -> bool:
    """Whether the logits are to be changed, in some steps at least, before a token is chosen."""
    return bool(
        params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.logit_bias
        or params.min_tokens
        or params.bad_words_ids
        or params.allowed_token_ids
        or params.grammar is not None
    )
