"""One sequence on its way through the engine: its tokens, how far they are computed, and the blocks it holds.

There is no phase and no status: a request runs while it holds blocks, and what a step has to do for it is the
difference between `num_tokens` and `num_computed_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from roseinfer.core.batch import Int32Array
from roseinfer.core.messages import AddRequest


class IdArray:
    """Int32 ids that grow at the end, so that a step takes slices of one buffer instead of converting lists."""

    __slots__ = ("_buffer", "_size")

    def __init__(self, ids: npt.ArrayLike = ()) -> None:
        values = np.asarray(ids, dtype=np.int32)
        self._size = len(values)
        self._buffer: Int32Array = np.empty(max(16, self._size + self._size // 4), dtype=np.int32)
        self._buffer[: self._size] = values

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> int:
        return int(self.view()[index])

    def __setitem__(self, index: int, value: int) -> None:
        self.view()[index] = value

    def view(self, start: int = 0, stop: int | None = None) -> Int32Array:
        """Ids [start, stop) without a copy, good until the next change."""
        return self._buffer[start : self._size if stop is None else stop]

    def append(self, value: int) -> None:
        self._reserve(1)
        self._buffer[self._size] = value
        self._size += 1

    def extend(self, values: Sequence[int]) -> None:
        self._reserve(len(values))
        self._buffer[self._size : self._size + len(values)] = values
        self._size += len(values)

    def clear(self) -> None:
        self._size = 0

    def tolist(self) -> list[int]:
        ids: list[int] = self.view().tolist()
        return ids

    def _reserve(self, count: int) -> None:
        if self._size + count > len(self._buffer):
            grown = np.empty(2 * (self._size + count), dtype=np.int32)
            grown[: self._size] = self.view()
            self._buffer = grown


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
        self.token_ids = IdArray(params.prompt_ids + params.output_ids)
        self.num_prompt_tokens = len(params.prompt_ids)
        self.num_computed_tokens = 0  # leading tokens whose keys and values lie in the blocks
        self.num_cached_tokens = 0  # of the prompt, taken from the prefix cache before the first token
        self.num_preemptions = 0
        self.block_table = IdArray()
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
        ids: list[int] = self.token_ids.view(0, self.num_prompt_tokens).tolist()
        return ids

    @property
    def output_ids(self) -> list[int]:
        ids: list[int] = self.token_ids.view(self.num_prompt_tokens).tolist()
        return ids
