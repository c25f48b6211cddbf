"""SentencePiece's BPE as GGUF files carry it ("llama"): pieces with scores, merged greedily, best score first.

The `tokenizers` library can run such vocabularies only by a merge list made from the scores, which takes seconds
for a large one and orders equal scores differently. This is the algorithm itself. It is exact, and cheap to load:
the text is cut wherever no piece spans two neighbouring characters, since no merge can cross such a place, and the
short segments between are remembered.
"""

from __future__ import annotations

import heapq
import itertools
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import numpy as np
import numpy.typing as npt

from roseinfer.core.errors import TokenizerError
from roseinfer.text.token_bytes import SPACE_MARK

Ids = tuple[int, ...]

_MAX_CACHED_SEGMENTS = 1 << 16
_MAX_CACHED_LENGTH = 32
_NUM_PAIR_BUCKETS = 1 << 22
_HEAD_FACTOR, _TAIL_FACTOR = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B)


class AddedTokens:
    """Tokens that are found in the text before anything else, leftmost first, then longest."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = {text: token_id for text, token_id in ids.items() if text}
        self._lengths: dict[str, set[int]] = {}  # by a token's first two characters: all lengths it may have
        for token in self._ids:
            self._lengths.setdefault(token[:2], set()).add(len(token))
        self._starts = _pattern_of(self._lengths)

    def split(self, text: str) -> Iterator[str | int]:
        """Stretches of plain text, and ids of added tokens, in order."""
        begin = position = 0
        while self._starts and (match := self._starts.search(text, position)):
            position = match.start()
            token = self._token_at(text, position)
            if token is None:
                position += 1
                continue
            if begin < position:
                yield text[begin:position]
            yield self._ids[token]
            begin = position = position + len(token)
        if begin < len(text):
            yield text[begin:]

    def _token_at(self, text: str, position: int) -> str | None:
        for start in (text[position : position + 2], text[position]):
            for length in sorted(self._lengths.get(start, ()), reverse=True):
                token = text[position : position + length]
                if token in self._ids:
                    return token
        return None


def _pattern_of(starts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of the strings, each of one or two characters; None for none."""
    seconds: dict[str, set[str]] = {}
    for start in starts:
        seconds.setdefault(start[0], set()).add(re.escape(start[1:]))
    branches = [
        re.escape(first) + ("" if "" in rest else f"[{''.join(sorted(rest))}]") for first, rest in seconds.items()
    ]
    return re.compile("|".join(branches)) if branches else None


class SegmentCutter:
    """Cuts text at places that no piece spans. May overlook one (pairs share buckets), never invents one."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._spanned = np.zeros(_NUM_PAIR_BUCKETS, dtype=np.bool_)
        self._spanned[_pair_buckets("\0".join(pieces))] = True

    def cut(self, text: str) -> list[str]:
        """The segments of `text`, none empty; joined, they are `text`."""
        cuts = (np.flatnonzero(~self._spanned[_pair_buckets(text)]) + 1).tolist()
        return [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)])]


def _pair_buckets(text: str) -> npt.NDArray[np.uint32]:
    """A hash of every two neighbouring characters; [len(text) - 1]."""
    chars = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    hashes = (chars[:-1] * _HEAD_FACTOR) ^ (chars[1:] * _TAIL_FACTOR)
    return hashes >> np.uint32(32 - 22)


class SentencePieceEncoder:
    """Thread safe. `token_ids` are all of the vocabulary; `hidden_ids` those that plain text never becomes.

    `added` is found in the text always, `control` only where special tokens are parsed. `byte_ids` are the 256 ids
    that stand in for the UTF-8 bytes of a character without a piece.
    """

    def __init__(
        self,
        token_ids: Mapping[str, int],
        scores: Sequence[float],
        *,
        hidden_ids: Set[int],
        added: Mapping[str, int],
        control: Mapping[str, int],
        byte_ids: Sequence[int],
        add_space_prefix: bool,
    ) -> None:
        self._token_ids = token_ids
        self._hidden_ids = hidden_ids
        self._scores = array("d", scores)  # a fourth of a list's memory
        self._byte_ids = byte_ids
        self._add_space_prefix = add_space_prefix
        self._plain_splitter = AddedTokens(added)
        self._special_splitter = AddedTokens({**added, **control})
        self._cutter = SegmentCutter(token_ids)
        self._cache: dict[str, Ids] = {}

    def encode(self, text: str, parse_special: bool) -> list[int]:
        splitter = self._special_splitter if parse_special else self._plain_splitter
        ids: list[int] = []
        after_token = True
        for part in splitter.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                self._encode_plain(" " + part if self._add_space_prefix and after_token else part, ids)
            after_token = isinstance(part, int)
        return ids

    def encode_after_token(self, text: str) -> list[int]:
        """Plain text that follows a special token: the same as at the start."""
        return self.encode(text, parse_special=False)

    def _encode_plain(self, text: str, ids: list[int]) -> None:
        cache = self._cache
        for segment in self._cutter.cut(text.replace(" ", SPACE_MARK)):
            known = cache.get(segment)
            if known is None:
                known = self._encode_segment(segment)
                self._remember(segment, known)
            ids.extend(known)

    def _remember(self, segment: str, ids: Ids) -> None:
        if len(segment) > _MAX_CACHED_LENGTH:
            return
        if len(self._cache) >= _MAX_CACHED_SEGMENTS:
            self._cache.clear()
        self._cache[segment] = ids

    def _encode_segment(self, segment: str) -> Ids:
        ids: list[int] = []
        for piece in self._merge(segment):
            token_id = self._piece_id(piece)
            if token_id is None:  # only ever a single character
                ids.extend(self._byte_ids[byte] for byte in piece.encode())
            else:
                ids.append(token_id)
        return tuple(ids)

    def _piece_id(self, text: str) -> int | None:
        token_id = self._token_ids.get(text)
        return None if token_id in self._hidden_ids else token_id

    def _merge(self, segment: str) -> list[str]:
        """Merge the neighbours whose union has the highest score, the leftmost such, until there are none."""
        length = len(segment)
        stops = list(range(1, length + 1))  # stops[i]: where the symbol that starts at i ends; 0 = swallowed
        previous = list(range(-1, length))  # previous[i]: where the symbol before the one at i starts
        merges: list[tuple[float, int, int]] = []  # (-score, start, stop)

        def consider(start: int, middle: int) -> None:
            if start < 0 or middle >= length:
                return
            stop = stops[middle]
            token_id = self._piece_id(segment[start:stop])
            if token_id is not None:
                heapq.heappush(merges, (-self._scores[token_id], start, stop))

        for middle in range(1, length):
            consider(middle - 1, middle)
        while merges:
            _, start, stop = heapq.heappop(merges)
            middle = stops[start]
            if not 0 < middle < length or stops[middle] != stop:
                continue  # one of the two has been merged since
            stops[start], stops[middle] = stop, 0
            previous[stop] = start
            consider(previous[start], start)
            consider(start, stop)
        return [segment[start:stop] for start, stop in enumerate(stops) if stop]


def find_byte_ids(token_ids: Mapping[str, int], unknown_id: int | None) -> list[int]:
    """The ids of `<0x00>` ... `<0xFF>`; the unknown token where one is missing."""
    ids = [token_ids.get(f"<0x{byte:02X}>", unknown_id) for byte in range(256)]
    found = [token_id for token_id in ids if token_id is not None]
    if len(found) != 256:
        raise TokenizerError("the vocabulary has neither a token for every byte nor an unknown token")
    return found
