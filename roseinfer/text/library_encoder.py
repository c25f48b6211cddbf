"""The `tokenizers` library behind our interface; its errors, panics included, become TokenizerError."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from roseinfer.core.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer


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
    """Releases the GIL while it encodes. Nothing is truncated or padded, whatever the file asks for."""

    def __init__(self, tokenizer: LibraryTokenizer) -> None:
        # One text at a time gains nothing from the library's thread pool, which would not survive a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._literal: LibraryTokenizer | None = None
        self._lock = threading.Lock()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        with library_errors("the text cannot be tokenised"):
            tokenizer = self._tokenizer if parse_special else self._literal_tokenizer()
            # Of the library's calls only those for batches let other threads run.
            return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _literal_tokenizer(self) -> LibraryTokenizer:
        """A second tokenizer, for the setting belongs to the object and other threads are using the first."""
        with self._lock:
            if self._literal is None:
                literal = type(self._tokenizer).from_str(self._tokenizer.to_str())
                literal.encode_special_tokens = True
                self._literal = literal
            return self._literal
