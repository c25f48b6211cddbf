"""Ids to text, piece by piece: what `Tokenizer.decode` gives for all ids at once, as they arrive."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from roseinfer.text.vocabulary import Vocabulary

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """One stream. However the ids are cut, the pieces joined equal the text decoded at once.

    A piece is final and never ends inside a UTF-8 character; bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool, strip_space: bool) -> None:
        self._vocabulary = vocabulary
        self._skip_special = skip_special
        self._strip_space = strip_space
        self._decoder = _Utf8Decoder(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; empty while a character is still open."""
        return self._strip(self._decoder.decode(self._vocabulary.join(ids, self._skip_special)))

    def finish(self) -> str:
        """What is left when no more ids come: U+FFFD for a character that was cut off, else nothing."""
        return self._strip(self._decoder.decode(b"", final=True))

    @property
    def has_open_character(self) -> bool:
        """Whether bytes wait for the rest of their character."""
        return bool(self._decoder.getstate()[0])

    def _strip(self, text: str) -> str:
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text
