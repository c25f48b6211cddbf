"""Bodies are refused for their number of objects and items before any is made; strings do not count."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.core import limits
from roseinfer.core.errors import InvalidRequestError
from roseinfer.server import json_body
from roseinfer.server.json_body import MAX_ITEMS, parse_json
from roseinfer.server.schemas.base import MAX_WARNINGS
from roseinfer.server.schemas.completions import CompletionRequest

TEXTS = st.text(alphabet='[]{},"\\a/\n', max_size=12)
VALUES = st.recursive(TEXTS | st.integers(), lambda values: st.lists(values) | st.dictionaries(TEXTS, values))


def num_containers(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict | list) + sum(map(num_containers, children))


@given(VALUES)
def test_exactly_what_is_outside_of_strings_counts(value: Any) -> None:
    bare = json_body._without_strings(json.dumps(value).encode())
    assert bare.count(b"[") + bare.count(b"{") == num_containers(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" + b",".join([b"[]"] * 2_700_000) + b"]", f"more than {limits.JSON_CONTAINERS.most} objects and lists"),
        (b"[" * 8_000_000, f"more than {limits.JSON_CONTAINERS.most} objects and lists"),
        (b"[" + b",".join([b"1"] * 4_000_000) + b"]", f"more than {MAX_ITEMS} items"),
        (b'["\\\\",' + b"[]," * 70_000 + b"1]", f"more than {limits.JSON_CONTAINERS.most} objects and lists"),
    ],
)
def test_too_many_are_refused_before_any_is_made(monkeypatch: pytest.MonkeyPatch, content: bytes, message: str) -> None:
    monkeypatch.setattr(json_body, "from_json", lambda *_, **__: pytest.fail("was parsed"))
    with pytest.raises(InvalidRequestError, match=message):
        parse_json(content)


@pytest.mark.parametrize("text", ["[" * 100_000, "," * 700_000, '"[' * 100_000, '\\"{' * 100_000, "\\[" * 100_000])
def test_a_text_may_have_any_number_of_brackets(text: str) -> None:
    assert parse_json(json.dumps({"prompt": text}).encode()) == {"prompt": text}


@pytest.mark.parametrize("pattern", [b'"', b'"\\', b"\\", b'\\"', b"[,", b'["'])
def test_no_pattern_takes_long(pattern: bytes) -> None:
    content = pattern * (limits.BODY_BYTES.most // len(pattern))
    started_at = time.process_time()
    with pytest.raises(InvalidRequestError):
        parse_json(content)
    assert time.process_time() - started_at < 2  # of a quadratic one it would be hours


def test_unknown_fields_are_named_up_to_a_number() -> None:
    body = CompletionRequest.model_validate({"prompt": "a", **{f"x{index}": [[]] * 10 for index in range(100)}})
    assert body.unknown_fields() == [f"x{index}" for index in range(MAX_WARNINGS)]
