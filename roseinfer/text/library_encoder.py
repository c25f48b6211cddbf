"""The `tokenizers` library behind our interface; its errors, panics included, become TokenizerError."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from roseinfer.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as LibraryTokenizer


# A token of our own, behind which a text is encoded; no text holds these noncharacters but on purpose.
_SEPARATOR = "\ufdd0\ufdd1"


@contextmanager
def library_errors(doing: str) -> Iterator[None]:
    """The library raises bare Exceptions, and on a panic a BaseException."""
    try:
        yield
    except TokenizerError:
        raise
    except Exception as error:
        raise TokenizerError(f"{doing}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{doing}: {error}") from error


class LibraryEncoder:
    """Releases the GIL while it encodes. Nothing is truncated or padded, whatever the file asks for.

    `control_names` are those of tokens that must not come from plain text, though the file may not say so.
    """

    def __init__(self, tokenizer: LibraryTokenizer, control_names: Iterable[str] = ()) -> None:
        # One text at a time gains nothing from the library's thread pool, which would not survive a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._control_names = list(control_names)
        self._literals: dict[bool, LibraryTokenizer] = {}
        self._lock = threading.Lock()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        tokenizer = self._tokenizer if parse_special else self._literal_tokenizer(text)
        return _encode(tokenizer, text)

    def encode_after_token(self, text: str) -> list[int]:
        """Some tokenizers put a space before a text, but only at its very start."""
        if _SEPARATOR in text:
            return self.encode(text, parse_special=False)
        return _encode(self._literal_tokenizer(text), _SEPARATOR + text)[1:]

    def _literal_tokenizer(self, text: str) -> LibraryTokenizer:
        """A second tokenizer, for the setting belongs to the object and other threads are using the first.

        It knows the separator, unless that is a part of `text`.
        """
        separates = _SEPARATOR not in text
        with self._lock:
            if separates not in self._literals:
                self._literals[separates] = self._make_literal(separates)
            return self._literals[separates]

    def _make_literal(self, separates: bool) -> LibraryTokenizer:
        with library_errors("the tokenizer cannot be copied"):
            literal = type(self._tokenizer).from_str(self._tokenizer.to_str())
            literal.encode_special_tokens = True
            literal.add_special_tokens(_tokens(self._control_names, special=True))
            literal.add_tokens(_tokens([_SEPARATOR] if separates else [], special=False))
            return literal


def _encode(tokenizer: LibraryTokenizer, text: str) -> list[int]:
    with library_errors("the text cannot be tokenised"):
        # Of the library's calls only those for batches let other threads run.
        return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _tokens(texts: Iterable[str], *, special: bool) -> list[AddedToken]:
    from tokenizers import AddedToken

    return [AddedToken(text, normalized=False, special=special) for text in texts]
