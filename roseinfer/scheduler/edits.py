"""What requests want done to their logits, as the arrays that a program reads.

What follows from a request's parameters alone is worked out once and kept with the request; a step adds what
depends on its tokens: the history that penalties count, stop tokens that come too early, bad words about to end.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from roseinfer.core.batch import Float32Array, Int32Array, LogitEdits, UInt32Array
from roseinfer.core.messages import AddRequest
from roseinfer.core.request import Int32List, Request, int32_list

_ALL_TOKENS = 0xFFFFFFFF
_INT32 = np.dtype(np.int32)
_FLOAT32 = np.dtype(np.float32)


def num_mask_words(vocab_size: int) -> int:
    return -(-vocab_size // 32)


class Bias(NamedTuple):
    """What is added to the logits of distinct tokens; -inf forbids one."""

    ids: Int32List
    values: array[float]

    @classmethod
    def of(cls, bias: Mapping[int, float]) -> Bias:
        return cls(int32_list(bias), array("f", bias.values()))

    def forbidding(self, token_ids: Iterable[int]) -> Bias:
        """With these tokens forbidden too, whatever is added to them."""
        bias = dict(zip(self.ids, self.values, strict=True))
        return Bias.of(bias | dict.fromkeys(token_ids, -inf))


class LogitRules:
    """What one request's parameters say about its logits."""

    __slots__ = ("_bias", "_early_bias", "_min_tokens", "_word_ends", "allowed", "has_penalties")

    def __init__(self, params: AddRequest, vocab_size: int) -> None:
        words = [word for word in params.bad_words_ids if word]
        self._bias = Bias.of(params.logit_bias).forbidding(word[0] for word in words if len(word) == 1)
        self._early_bias = self._bias.forbidding(params.stop_token_ids)
        self._min_tokens = params.min_tokens
        self._word_ends = _word_ends(words)
        self.allowed = _bitmask(params.allowed_token_ids, vocab_size) if params.allowed_token_ids else None
        penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
        self.has_penalties = penalties != (0.0, 0.0, 1.0)

    def bias(self, request: Request) -> Bias:
        """For the request's next token."""
        bias = self._early_bias if request.num_output_tokens < self._min_tokens else self._bias
        ends = self._ends_of_words(request.token_ids) if self._word_ends else []
        return bias.forbidding(ends) if ends else bias

    def _ends_of_words(self, token_ids: Int32List) -> list[int]:
        """The last ids of the bad words that the tokens end with but for these."""
        candidates = self._word_ends.get(token_ids[-1], ())
        return [last for start, last in candidates if token_ids[-len(start) :] == start]


def _word_ends(words: Iterable[Sequence[int]]) -> dict[int, list[tuple[Int32List, int]]]:
    """Words of several ids, each cut into all but the last and the last, by the last id but one."""
    ends: dict[int, list[tuple[Int32List, int]]] = {}
    for word in words:
        if len(word) > 1:
            ends.setdefault(word[-2], []).append((int32_list(word[:-1]), word[-1]))
    return ends


def _bitmask(token_ids: Collection[int], vocab_size: int) -> UInt32Array:
    """[ceil(vocab_size / 32)], bit i of word w is token 32 w + i."""
    bits = np.zeros(num_mask_words(vocab_size) * 32, dtype=np.bool_)
    bits[np.fromiter(token_ids, dtype=np.int64, count=len(token_ids))] = True
    words: UInt32Array = np.packbits(bits, bitorder="little").view(np.dtype("<u4"))
    return words


def make_edits(edited: Sequence[tuple[int, Request]], vocab_size: int) -> LogitEdits | None:
    """Of (sampled row, request) pairs with `logit_rules`, rows ascending; None if no row wants any in this step.

    The masks of requests with a constraint are left to `fill_masks`.
    """
    wanted = [(row, request, request.logit_rules.bias(request)) for row, request in edited]
    wanted = [(row, request, bias) for row, request, bias in wanted if bias.ids or _wants_more(request)]
    if not wanted:
        return None
    rows, requests, biases = zip(*wanted, strict=True)
    params = [request.params for request in requests]
    histories = [request.token_ids if request.logit_rules.has_penalties else int32_list() for request in requests]
    with_history = zip(requests, histories, strict=True)
    masks, mask_rows = _masks(requests, vocab_size)
    return LogitEdits(
        rows=np.array(rows, dtype=np.int32),
        repetitions=np.array([p.repetition_penalty for p in params], dtype=np.float32),
        presences=np.array([p.presence_penalty for p in params], dtype=np.float32),
        frequencies=np.array([p.frequency_penalty for p in params], dtype=np.float32),
        history=_joined_ids(histories),
        history_offsets=_offsets(histories),
        output_starts=np.array([r.num_prompt_tokens if len(h) else 0 for r, h in with_history], dtype=np.int32),
        bias_ids=_joined_ids([bias.ids for bias in biases]),
        bias_values=_joined_floats([bias.values for bias in biases]),
        bias_offsets=_offsets([bias.ids for bias in biases]),
        masks=masks,
        mask_rows=mask_rows,
    )


def _wants_more(request: Request) -> bool:
    """Than a bias."""
    return request.logit_rules.has_penalties or _wants_mask(request)


def _wants_mask(request: Request) -> bool:
    return request.constraint is not None or request.logit_rules.allowed is not None


def _masks(requests: Sequence[Request], vocab_size: int) -> tuple[UInt32Array, Int32Array]:
    masked = [request for request in requests if _wants_mask(request)]
    masks = np.full((len(masked), num_mask_words(vocab_size)), _ALL_TOKENS, dtype=np.uint32)
    for mask, request in zip(masks, masked, strict=True):
        if request.logit_rules.allowed is not None:
            mask[:] = request.logit_rules.allowed
    mask_of = {request: index for index, request in enumerate(masked)}
    return masks, np.array([mask_of.get(request, -1) for request in requests], dtype=np.int32)


def fill_masks(
    requests: Sequence[Request], edits: LogitEdits, on_filled: Callable[[], None] = lambda: None
) -> dict[Request, Exception]:
    """Lets the constraints of the sampled requests write their masks, and calls `on_filled` after each. Returns what
    went wrong with which of them.

    Depends on the tokens accepted so far and changes nothing else, so it may be done again.
    """
    failures: dict[Request, Exception] = {}
    for row, mask_row in zip(edits.rows.tolist(), edits.mask_rows.tolist(), strict=True):
        request = requests[row]
        if request.constraint is not None:
            try:
                request.constraint.fill_mask(edits.masks[mask_row])
            except Exception as error:  # one request's fault is never another's
                failures[request] = error
            if request.logit_rules.allowed is not None:
                edits.masks[mask_row] &= request.logit_rules.allowed
            on_filled()
    return failures


def _joined_ids(lists: Iterable[Int32List]) -> Int32Array:
    joined = int32_list()
    for ids in lists:
        joined += ids
    return np.frombuffer(joined, dtype=_INT32)


def _joined_floats(lists: Iterable[array[float]]) -> Float32Array:
    joined = array("f")
    for values in lists:
        joined += values
    return np.frombuffer(joined, dtype=_FLOAT32)


def _offsets(lists: Sequence[Int32List]) -> Int32Array:
    """[len(lists) + 1], where each begins in their concatenation."""
    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum([len(ids) for ids in lists], out=offsets[1:])
    return offsets
