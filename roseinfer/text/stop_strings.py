"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class StopMatch(NamedTuple):
    string: str
    end: int  # where it ends in the piece that completed it


class StopStrings:
    """Finds the occurrence that is complete first, of several that end together the longest.

    A search by Knuth, Morris and Pratt for each string: time is linear in the text, and nothing of it is kept.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._searches = [_Search(string) for string in dict.fromkeys(strings) if string]
        self._searches.sort(key=lambda search: -len(search.string))

    def __bool__(self) -> bool:
        return bool(self._searches)

    def find(self, piece: str, *, counts: bool = True) -> StopMatch | None:
        """The first match that ends in `piece`, the next of the text; nothing may be asked behind a match.

        Without `counts` occurrences that end in this piece are ordinary text, though one may begin here.
        """
        first = None
        for search in self._searches:
            end = search.find(piece, counts)
            if end is not None and (first is None or end < first.end):
                first = StopMatch(search.string, end)
        return first

    @property
    def num_held(self) -> int:
        """How many of the text's last characters may be the beginning of a stop string."""
        return max([search.num_matched for search in self._searches], default=0)


class _Search:
    """For one string; `num_matched` of its characters are the text's last ones."""

    def __init__(self, string: str) -> None:
        self.string = string
        self.num_matched = 0
        self._fallbacks = _fallbacks(string)

    def find(self, piece: str, counts: bool) -> int | None:
        string, fallbacks, matched = self.string, self._fallbacks, self.num_matched
        position = 0
        while position < len(piece):
            if not matched and (position := piece.find(string[0], position)) < 0:
                break
            while matched and string[matched] != piece[position]:
                matched = fallbacks[matched]
            if string[matched] == piece[position]:
                matched += 1
            position += 1
            if matched == len(string):
                if counts:
                    return position
                matched = fallbacks[matched]
        self.num_matched = matched
        return None


def _fallbacks(string: str) -> list[int]:
    """[n]: the length of the longest beginning of `string` that ends its first n characters, short of all n."""
    fallbacks = [0, 0]
    matched = 0
    for char in string[1:]:
        while matched and string[matched] != char:
            matched = fallbacks[matched]
        matched += string[matched] == char
        fallbacks.append(matched)
    return fallbacks
