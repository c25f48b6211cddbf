"""Stop strings against a search that looks at every place."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.text.stop_strings import StopMatch, StopStrings

TEXTS = st.text("abé", max_size=40)
STOPS = st.lists(st.text("abé", max_size=5), max_size=4)


def first_match(text: str, stops: list[str]) -> tuple[str, int] | None:
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            return max(found, key=len), end
    return None


def num_held(text: str, stops: list[str]) -> int:
    lengths = [n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)


@given(TEXTS, STOPS, st.lists(st.integers(0, 40)))
def test_pieces_are_searched_like_the_whole(text: str, stops: list[str], cuts: list[int]) -> None:
    search = StopStrings(stops)
    borders = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    for begin, end in pairwise(borders):
        match = search.find(text[begin:end])
        if match is not None:
            assert (match.string, begin + match.end) == first_match(text, stops)
            return
        assert search.num_held == num_held(text[:end], stops)
    assert first_match(text, stops) is None


@given(TEXTS, TEXTS, STOPS)
def test_a_match_that_does_not_count_is_text(before: str, after: str, stops: list[str]) -> None:
    """Matches are found that begin before the border from which they count, and overlap ones that did not."""
    search = StopStrings(stops)
    assert search.find(before, counts=False) is None
    match = search.find(after)
    text = before + after
    ends = [end for end in range(len(before) + 1, len(text) + 1) if any(s and text[:end].endswith(s) for s in stops)]
    assert (match.end + len(before) if match else None) == min(ends, default=None)


@pytest.mark.parametrize(
    ("text", "stops", "match"),
    [
        ("abc", ["abc", "b"], StopMatch("b", 2)),
        ("abc", ["c", "bc", "abc"], StopMatch("abc", 3)),
        ("abc", [], None),
        ("abc", [""], None),
    ],
)
def test_the_first_that_is_complete(text: str, stops: list[str], match: StopMatch | None) -> None:
    assert StopStrings(stops).find(text) == match


def test_long_strings_take_linear_time() -> None:
    search = StopStrings(["a" * 50_000 + "b"])
    for _ in range(200):
        assert search.find("a" * 1000) is None
    assert search.num_held == 50_000
    assert search.find("ab") == StopMatch("a" * 50_000 + "b", 2)
