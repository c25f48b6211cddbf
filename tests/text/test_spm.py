"""The SentencePiece encoder against the algorithm written down naively."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from roseinfer.text.gguf_tokenizer import load_gguf_tokenizer
from roseinfer.text.spm import AddedTokens, SegmentCutter
from tests.text.vocabularies import BYTE_TOKENS, SPM_PIECES, spm_metadata

PLAIN = load_gguf_tokenizer(spm_metadata(add_space_prefix=False, add_bos_token=False))
IDS = {text: i for i, text in enumerate(spm_metadata()["tokenizer.ggml.tokens"])}
TEXTS = st.text(st.sampled_from(" ab=hellowrd.é漢x\n🤗"), max_size=40) | st.text(max_size=20)


def merge_naively(text: str) -> list[str]:
    """Of all neighbours whose union is a piece, merge those with the highest score, leftmost first; repeat."""
    symbols = list(text)
    while True:
        unions = [left + right for left, right in itertools.pairwise(symbols)]
        candidates = [(-SPM_PIECES[union], i) for i, union in enumerate(unions) if union in SPM_PIECES]
        if not candidates:
            return symbols
        _, i = min(candidates)
        symbols[i : i + 2] = [unions[i]]


def encode_naively(text: str) -> list[int]:
    symbols = merge_naively(text.replace(" ", "▁"))
    names = [[s] if s in SPM_PIECES else [BYTE_TOKENS[byte] for byte in s.encode()] for s in symbols]
    return [IDS[name] for group in names for name in group]


@given(TEXTS)
def test_equals_the_naive_algorithm(text: str) -> None:
    assert PLAIN.encode(text) == encode_naively(text)


@given(st.text(st.sampled_from("ab="), max_size=60))
def test_equal_scores_merge_from_the_left(text: str) -> None:
    """Periodic texts: the same union out of different pairs, where a list of ranked merges goes wrong."""
    assert PLAIN.encode(text) == encode_naively(text)


def test_space_prefix_comes_after_every_added_token() -> None:
    """As llama.cpp does it: each stretch of plain text starts with a space."""
    tokenizer = load_gguf_tokenizer(spm_metadata(add_bos_token=False))
    assert tokenizer.encode("hello<b>hello<end> world") == [
        IDS[name] for name in ("▁hello", "<b>", "▁hello", "<end>", "▁", "▁world")
    ]


def test_a_piece_that_no_merges_lead_to_is_never_used() -> None:
    assert PLAIN.encode("wow") == [IDS["w"], IDS["o"], IDS["w"]]
    assert PLAIN.encode("====") == [IDS["=="], IDS["=="]]
    assert PLAIN.encode("=====") == [IDS["====="]]


def test_a_long_run_takes_no_quadratic_time() -> None:
    assert PLAIN.encode("a" * 200_000) == [IDS["aaaa"]] * 50_000


def test_control_and_byte_tokens_are_no_pieces() -> None:
    """Ordinary text never becomes a control token, even where merges could spell one."""
    ids = PLAIN.encode("</s><0x41>", parse_special=False)
    assert not {IDS["</s>"], IDS["<0x41>"]} & set(ids)
    assert PLAIN.decode(ids) == "</s><0x41>"


@given(st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=4), max_size=6), st.text(st.sampled_from("abcd")))
def test_added_tokens_are_leftmost_longest(tokens: list[str], text: str) -> None:
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    expected: list[str | int] = []
    position = 0
    while position < len(text):
        found = [token for token in ids if text.startswith(token, position)]
        if found:
            longest = max(found, key=len)
            expected.append(ids[longest])
            position += len(longest)
            continue
        if expected and isinstance(expected[-1], str):
            expected[-1] += text[position]
        else:
            expected.append(text[position])
        position += 1
    assert list(AddedTokens(ids).split(text)) == expected


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=8), st.data())
def test_cuts_never_divide_a_piece(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(pieces) | st.text(max_size=2), min_size=1)))
    if not text:
        return
    segments = SegmentCutter(pieces).cut(text)
    assert "".join(segments) == text
    assert all(segments)
    borders = {sum(map(len, segments[:i])) for i in range(1, len(segments))}
    for piece in pieces:
        start = text.find(piece)
        while start >= 0:
            assert not borders & set(range(start + 1, start + len(piece)))
            start = text.find(piece, start + 1)


def test_cuts_between_words() -> None:
    """Not only never wrong, but of use: or every text would be one long segment."""
    cutter = SegmentCutter(list(SPM_PIECES))
    assert cutter.cut("▁hello▁world▁hello") == ["▁hello", "▁world", "▁hello"]
