"""How texts are cut into words. The expected cuts were compared with llama.cpp's on thousands of texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.core.errors import TokenizerError
from roseinfer.text.pre_tokenizers import _SPECS, find_pre_tokenizer

TEXT = "I'LL say don't,  x12345²\r\n\n\tfooBar HTTPServer été漢字かな!? //\n  "
WORDS = [
    ("gpt-2", "I¦'¦LL¦ say¦ don¦'t¦,¦ ¦ x¦12345²¦\r\n\n¦\t¦fooBar¦ HTTPServer¦ été漢字かな¦!?¦ //¦\n  "),
    ("smollm", "I¦'¦LL¦ say¦ don¦'t¦,¦ ¦ x¦1¦2¦3¦4¦5¦²¦\r\n\n¦\t¦fooBar¦ HTTPServer¦ été漢字かな¦!?¦ //¦\n  "),
    ("default", "I¦'¦LL¦ say¦ don¦'¦t¦,¦ ¦ x¦123¦45²¦\r\n\n¦\t¦fooBar¦ HTTPServer¦ été漢字かな¦!?¦ ¦//¦\n  "),
    ("llama-bpe", "I¦'LL¦ say¦ don¦'t¦,¦ ¦ x¦123¦45²¦\r\n\n¦\tfooBar¦ HTTPServer¦ été漢字かな¦!?¦ //\n¦  "),
    ("qwen2", "I¦'LL¦ say¦ don¦'t¦,¦ ¦ x¦1¦2¦3¦4¦5¦²¦\r\n\n¦\tfooBar¦ HTTPServer¦ été漢字かな¦!?¦ //\n¦  "),
    ("tekken", "I¦'LL¦ say¦ don¦'t¦,¦ ¦ x¦1¦2¦3¦4¦5¦²¦\r\n\n¦\tfoo¦Bar¦ HTTPServer¦ été漢字かな¦!?¦ //\n¦  "),
    ("gpt-4o", "I'LL¦ say¦ don't¦,¦ ¦ x¦123¦45²¦\r\n\n¦\tfoo¦Bar¦ HTTPServer¦ été漢字かな¦!?¦ //\n¦  "),
    ("deepseek-llm", "I¦'¦LL¦ say¦ don¦'¦t¦,¦ ¦ x¦12345²¦\r¦\n¦\n¦\tfooBar¦ HTTPServer¦ é¦t¦é¦漢字かな¦!?¦ //¦\n¦  "),
    (
        "deepseek-coder",
        "I¦'¦LL¦ say¦ don¦'¦t¦,¦ ¦ x¦1¦2¦3¦4¦5¦²¦\r¦\n¦\n¦\tfooBar¦ HTTPServer¦ été¦漢字かな¦!?¦ //¦\n¦  ",
    ),
    ("deepseek-v3", "I¦'LL¦ say¦ don¦'t¦,¦ ¦ x¦123¦45²¦\r\n\n¦\tfooBar¦ HTTPServer¦ été¦漢字かな¦!?¦ //\n¦  "),
    ("falcon", "I¦'¦LL¦ say¦ don¦'¦t¦,¦ ¦ x¦123¦45²¦\r\n\n¦\t¦fooBar¦ HTTPServer¦ été漢字かな¦!?¦ ¦//¦\n  "),
    ("bloom", "I'LL¦ say¦ don't¦, ¦ x12345²¦\r\n\n\t¦fooBar¦ HTTPServer¦ été漢字かな¦!?¦ //¦\n  "),
    ("viking", "I'LL¦ say¦ don't¦, ¦ x¦1¦2¦3¦4¦5¦²¦\r\n\n\t¦fooBar¦ HTTPServer¦ été漢字かな¦!?¦ //¦\n  "),
    ("bailingmoe", "I¦'LL¦ say¦ don¦'t¦,¦ ¦ x¦1¦2¦3¦4¦5¦²¦\r\n\n¦\tfooBar¦ HTTPServer¦ été漢字かな¦!?¦ //\n¦  "),
    ("seed-coder", "I¦'LL¦ say¦ don¦'t¦,¦ ¦ x¦1¦2¦3¦4¦5¦²¦\r\n\n¦\tfooBar¦ HTTPServer¦ été漢字かな¦!?¦ //¦\n¦  "),
]


@pytest.mark.parametrize(("name", "words"), WORDS, ids=[name for name, _ in WORDS])
def test_words(name: str, words: str) -> None:
    assert _cut(name, TEXT) == words.split("¦")


def test_combining_marks_belong_to_letters_in_qwen35_only() -> None:
    assert _cut("qwen2", "e\u0301a") == ["e", "\u0301a"]
    assert _cut("qwen35", "e\u0301a") == ["e\u0301a"]


@given(st.sampled_from(sorted(_SPECS)), st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_nothing_is_lost(name: str, text: str) -> None:
    assert "".join(_cut(name, text)) == text


def test_unknown_names_are_refused() -> None:
    with pytest.raises(TokenizerError, match="'gpt-99'"):
        find_pre_tokenizer("gpt-99")


def _cut(name: str, text: str) -> list[str]:
    return [text[start:stop] for _, (start, stop) in find_pre_tokenizer(name).build().pre_tokenize_str(text)]
