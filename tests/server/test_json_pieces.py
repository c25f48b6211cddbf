"""JSON that is written a few items at a time is the JSON of the whole."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.server.json_pieces import ITEMS_AT_ONCE, PIECE_BYTES, encode_json, json_pieces

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(max_size=5)
ITEMS = SCALARS | st.dictionaries(st.text(max_size=3), SCALARS, max_size=3)
LISTS = st.lists(ITEMS, max_size=4) | st.integers(0, 3 * ITEMS_AT_ONCE).map(lambda n: list(range(n)))
VALUES = st.recursive(
    SCALARS | LISTS.map(iter) | LISTS,
    lambda children: (
        st.dictionaries(st.text(max_size=3), children, max_size=4)
        | st.lists(st.dictionaries(st.text(max_size=3), children, min_size=1), min_size=1, max_size=3)
    ),
    max_leaves=8,
)


def twins(value: Any) -> tuple[Any, Any, Any]:
    """The value with two sets of iterators, and with lists in their place."""
    if isinstance(value, dict):
        members = {name: twins(each) for name, each in value.items()}
        a, b, c = ({name: each[i] for name, each in members.items()} for i in range(3))
        return a, b, c
    if isinstance(value, list):
        items = [twins(each) for each in value]
        first, second, plain = ([each[i] for each in items] for i in range(3))
        return first, second, plain
    if hasattr(value, "__next__"):
        items = list(value)
        return iter(items), iter(items), items
    return value, value, value


@given(VALUES)
def test_both_ways_to_write_say_the_same(value: Any) -> None:
    first, second, plain = twins(value)
    assert encode_json(first) == b"".join(json_pieces(second)) == msgspec.json.encode(plain)


def test_pieces_are_bounded_and_come_in_order() -> None:
    places = ({"token": "x" * 10, "logprob": -float(i)} for i in range(20_000))
    pieces = json_pieces({"id": "a", "choices": [{"logprobs": {"content": places}}, {"logprobs": None}]})
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 2 * PIECE_BYTES
    content = json.loads(b"".join(pieces))["choices"][0]["logprobs"]["content"]
    assert [place["logprob"] for place in content] == [-float(i) for i in range(20_000)]


def test_what_is_no_json_is_refused() -> None:
    for write in (encode_json, json_pieces):
        with pytest.raises(TypeError, match="object is not for JSON"):
            write({"a": object()})


def test_an_error_within_an_iterator_passes() -> None:
    for write in (encode_json, json_pieces):
        with pytest.raises(ZeroDivisionError):
            write({"a": (1 // i for i in (1, 0))})
