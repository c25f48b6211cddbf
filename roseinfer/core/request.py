"""One sequence on its way through the engine: its tokens, how far they are computed, and the blocks it holds.

There is no phase and no status: a request runs while it holds blocks, and what a step has to do for it is the
difference between `num_tokens` and `num_computed_tokens`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TypeAlias

from roseinfer.core.messages import AddRequest

# Grows at the end like a list, and is int32 in memory: a step copies slices of it and converts nothing.
Int32List: TypeAlias = "array[int]"


def int32_list(values: Iterable[int] = ()) -> Int32List:
    return array("i", values)


class Request:
    """One sequence. `arrival` orders requests by age; `cache_salt` keeps tenants' cached prefixes apart.

    The ids in `params` must have been checked: they are stored as int32 here and index tables in the kernels.
    """

    __slots__ = (
        "arrival",
        "block_digests",
        "block_table",
        "cache_salt",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "params",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(self, params: AddRequest, arrival: int = 0, cache_salt: bytes = b"") -> None:
        self.params = params
        self.arrival = arrival
        self.cache_salt = cache_salt
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.token_ids = int32_list(params.prompt_ids + params.output_ids)
        self.num_prompt_tokens = len(params.prompt_ids)
        self.num_computed_tokens = 0  # leading tokens whose keys and values lie in the blocks
        self.num_cached_tokens = 0  # of the prompt, taken from the prefix cache before the first token
        self.num_preemptions = 0
        self.block_table = int32_list()
        self.block_digests: list[bytes] = []  # of the leading full blocks, filled by the prefix cache on demand

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
    def is_running(self) -> bool:
        return len(self.block_table) > 0

    @property
    def prompt_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens].tolist()

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :].tolist()
