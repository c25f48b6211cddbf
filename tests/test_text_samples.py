"""The sample text is there on every supported Python, is prose, and does not depend on the length asked for."""

from __future__ import annotations

import pytest

from tests.text_samples import real_text


def test_a_shorter_text_is_the_start_of_a_longer_one() -> None:
    text = real_text(40_000)
    assert len(text) == 40_000
    assert real_text(1_000) == text[:1_000]
    assert real_text(0) == ""


def test_it_is_english() -> None:
    words = real_text(40_000).lower().split()
    assert words.count("the") / len(words) > 0.04
    assert len(set(words)) > 1_200


def test_more_than_there_is_is_an_error() -> None:
    with pytest.raises(ValueError, match="characters of"):
        real_text(10_000_000)
    with pytest.raises(ValueError, match="characters of"):
        real_text(-1)
