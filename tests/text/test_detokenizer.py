"""Streams of ids: however they are cut, the pieces join to what decoding at once gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.text.gguf_tokenizer import load_gguf_tokenizer
from roseinfer.text.tokenizer import Tokenizer
from tests.text.vocabularies import byte_level_metadata, spm_metadata

BYTE_LEVEL = load_gguf_tokenizer(byte_level_metadata())
SPM = load_gguf_tokenizer(spm_metadata())


@given(
    st.sampled_from([BYTE_LEVEL, SPM]),
    st.lists(st.lists(st.integers(-1, 310), max_size=4), max_size=30),
    st.booleans(),
    st.booleans(),
)
def test_pieces_join_to_decode(
    tokenizer: Tokenizer, chunks: list[list[int]], skip_special: bool, continuation: bool
) -> None:
    stream = tokenizer.detokenizer(skip_special=skip_special, continuation=continuation)
    pieces = [*(stream.push(chunk) for chunk in chunks), stream.finish()]
    ids = [token_id for chunk in chunks for token_id in chunk]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip_special, continuation=continuation)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_characters_arrive_whole(text: str) -> None:
    stream = BYTE_LEVEL.detokenizer()
    pieces = [stream.push([token_id]) for token_id in BYTE_LEVEL.encode(text)]
    assert stream.finish() == ""
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces).replace("\ufffd", "", text.count("\ufffd"))


def test_a_character_waits_for_its_last_byte() -> None:
    stream = SPM.detokenizer()
    assert [stream.push([3 + byte]) for byte in "é€".encode()] == ["", "é", "", "", "€"]


def test_broken_utf8_is_replaced_as_soon_as_it_is_known() -> None:
    stream = SPM.detokenizer()
    assert [stream.push([3 + byte]) for byte in b"\xe2\x82a\xffb\xf0\x9f"] == ["", "", "\ufffda", "\ufffd", "b", "", ""]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


@pytest.mark.parametrize(("continuation", "text"), [(True, " hello"), (False, "hello")])
def test_the_space_of_the_encoding(continuation: bool, text: str) -> None:
    """A completion's leading space is text; that of a text decoded from its start was put there by `encode`."""
    ids = SPM.encode("hello", add_bos=False)
    assert SPM.decode(ids, continuation=continuation) == text
    stream = SPM.detokenizer(continuation=continuation)
    assert stream.push(ids) + stream.finish() == text


def test_completions_are_continuations_by_default() -> None:
    assert SPM.detokenizer().push(SPM.encode("hello", add_bos=False)) == " hello"


def test_only_the_first_space_belongs_to_the_encoding() -> None:
    hello = SPM.encode("hello", add_bos=False)
    stream = SPM.detokenizer(continuation=False)
    assert [stream.push(hello), stream.push(hello), stream.finish()] == ["hello", " hello", ""]
