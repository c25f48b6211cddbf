"""What clients are told about a single token, and the queue that lets such entries go with the text they belong to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from roseinfer.core.messages import TokenOutput
from roseinfer.text.tokenizer import Tokenizer


@dataclass(slots=True)
class LikelyToken:
    """A token and its logprob; `token_bytes` is what it adds to the text, `token` its own text for people to read."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float


@dataclass(slots=True)
class TokenInfo:
    """A token of the answer, the likeliest ones at its place, and how many characters of the answer precede it."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    top: list[LikelyToken]
    text_offset: int


def describe_token(tokenizer: Tokenizer, token_id: int, *, skip_special: bool = True) -> tuple[str, bytes]:
    """(text, bytes) of one token alone. Bytes that are no UTF-8 are U+FFFD in the text.

    A special token that is skipped has its name as text and no bytes, so that the bytes of all tokens join to the
    text of the answer.
    """
    token_bytes = tokenizer.token_bytes(token_id)
    is_skipped = skip_special and tokenizer.is_special(token_id)
    return token_bytes.decode("utf-8", "replace"), b"" if is_skipped else token_bytes


def likely_token(tokenizer: Tokenizer, token_id: int, logprob: float, *, skip_special: bool = True) -> LikelyToken:
    return LikelyToken(token_id, *describe_token(tokenizer, token_id, skip_special=skip_special), logprob)


class TokenInfos:
    """Entries of one answer in order, each held until the text up to its end is final."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._waiting: deque[tuple[TokenInfo, int]] = deque()  # with the length of the text up to its end

    def add(self, output: TokenOutput, index: int, start: int, end: int, *, follows_open: bool = False) -> None:
        """The `index`-th token of `output`, whose text is the answer's characters from `start` to `end`.

        `follows_open`: the first of them was begun by the tokens before it.
        """
        token_id = output.token_ids[index]
        text, token_bytes = describe_token(self._tokenizer, token_id, skip_special=self._skip_special)
        if follows_open and token_bytes and not continues_character(token_bytes):
            start += 1  # what was begun is broken off, which is one U+FFFD before this token
        info = TokenInfo(token_id, text, token_bytes, output.logprobs[index], self._top(output, index), start)
        self._waiting.append((info, end))

    def _top(self, output: TokenOutput, index: int) -> list[LikelyToken]:
        if not output.top_ids:
            return []
        pairs = zip(output.top_ids[index], output.top_logprobs[index], strict=True)
        return [likely_token(self._tokenizer, *pair, skip_special=self._skip_special) for pair in pairs]

    def release(self, num_final: int) -> list[TokenInfo]:
        """Those whose text lies within the first `num_final` characters."""
        released = []
        while self._waiting and self._waiting[0][1] <= num_final:
            released.append(self._waiting.popleft()[0])
        return released

    def release_begun(self, text_len: int) -> list[TokenInfo]:
        """Of the remaining ones those that begin in a text of `text_len` characters; the others are dropped."""
        waiting, self._waiting = self._waiting, deque()
        return [info for info, _ in waiting if info.text_offset < text_len]


def continues_character(token_bytes: bytes) -> bool:
    """Whether they begin with a UTF-8 continuation byte."""
    return token_bytes[0] & 0xC0 == 0x80
