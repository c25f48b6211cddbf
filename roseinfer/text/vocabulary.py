"""What an id means: its bytes, and whether it is a special token. No text goes in here, only ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Vocabulary:
    """`size` ids. An id outside of it has no bytes: models pad their embedding beyond the tokenizer.

    `read_token` gives an id's bytes and is asked once per id, on first use, so that loading costs nothing.
    """

    def __init__(self, size: int, read_token: Callable[[int], bytes], special_ids: Iterable[int]) -> None:
        self.size = size
        self._read_token = read_token
        self._special_ids = frozenset(special_ids)
        self._bytes: dict[int, bytes] = {}

    def is_special(self, token_id: int) -> bool:
        """True for tokens that steer the model and are no text: BOS, end of turn, unknown, unused, ..."""
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token adds to the text; perhaps only a part of a UTF-8 character."""
        known = self._bytes.get(token_id)
        if known is None and 0 <= token_id < self.size:
            known = self._bytes[token_id] = self._read_token(token_id)
        return known or b""

    def join(self, ids: Iterable[int], skip_special: bool) -> bytes:
        """The bytes of all ids in order."""
        if skip_special:
            special_ids = self._special_ids
            return b"".join([self.token_bytes(i) for i in ids if i not in special_ids])
        return b"".join([self.token_bytes(i) for i in ids])
