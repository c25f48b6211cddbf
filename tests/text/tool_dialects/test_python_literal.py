"""Python literals to JSON."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.text.text_source import MalformedText, Steps, TextSource
from roseinfer.text.tool_dialects._python_literal import read_python_literal


def read(text: str) -> str:
    source = TextSource()
    source.feed(text)
    source.end()
    return run(read_python_literal(source))


def run(steps: Steps[str]) -> str:
    try:
        next(steps)
    except StopIteration as stop:
        return str(stop.value)
    raise AssertionError("waits for text although there is no more")


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@given(literals)
def test_what_python_writes(value: Any) -> None:
    assert json.loads(read(repr(value))) == json.loads(json.dumps(value))


@given(literals)
def test_what_json_writes(value: Any) -> None:
    assert json.loads(read(json.dumps(value))) == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "text",
    [
        r"'a\n\t\\\'\"\x41\u00e9\U0001F600\0'",
        '"""a "quoted" word"""',
        "''",
        "''''''",
        "'''it's'''",
        "'a\\\nb'",
        "[1, 2,]",
        "(1,)",
        "{'a': 1,}",
        "[]",
        "{}",
        "1_000",
        "+5",
        "-.5",
        "2.",
        "1e3",
        "[ 'a' , { 'b' : None } ]",
    ],
)
def test_as_python_reads_it(text: str) -> None:
    value = ast.literal_eval(text)
    assert json.loads(read(text)) == (list(value) if isinstance(value, tuple) else value)


def test_escapes_that_python_does_not_know_stay() -> None:
    assert json.loads(read(r"'\d\/'")) == r"\d\/"


def test_halves_of_a_pair() -> None:
    assert json.loads(read(r"'\ud83d\ude00'")) == "😀"
    assert json.loads(read(r"'\ud83d'")) == "\ufffd"


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "f(1)", "b'a'", "-", "inf", "nan", "-inf", "0x1", "1__0", "9_" * 5_000),
        *("'a", "'''a''", r"'\x4", r"'\xzz'", r"'\U00110000'"),
        *("[1", "[1 2]", "[,]", "[" * 100_000, "{", "{1: 2}", "{'a' 1}", "{'a': }"),
    ],
)
def test_everything_else_is_malformed(text: str) -> None:
    with pytest.raises(MalformedText):
        read(text)
