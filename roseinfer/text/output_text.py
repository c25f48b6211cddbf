"""The engine's outputs for one sequence → final text: stop strings, stop tokens, logprob entries, the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from roseinfer.core.messages import TokenOutput
from roseinfer.text.stop_strings import StopMatch, StopStrings
from roseinfer.text.token_info import LikelyToken, TokenInfo, TokenInfos
from roseinfer.text.tokenizer import Tokenizer

__all__ = ["LikelyToken", "OutputText", "TextDelta", "TextOptions", "TokenInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How one request wants its text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False  # the stop string, or the caller's stop token, is part of the text
    skip_special_tokens: bool = True
    min_tokens: int = 0  # a stop string counts if it ends in the text of this token or a later one, counted from 1


@dataclass(slots=True)
class TextDelta:
    """What outputs bring. However they are cut, texts, ids, entries and counts of all deltas add up to the same."""

    text: str = ""  # final; may be empty, never ends inside a character, holds no part of a stop string
    token_ids: list[int] = field(default_factory=list)  # as they come; a stop token only if it is text
    tokens: list[TokenInfo] = field(default_factory=list)  # where logprobs were asked for; they come with their text
    num_tokens: int = 0  # that were generated up to here: a stop token or stop string counts, nothing behind it does
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None  # the stop string, or the caller's stop token; None for the model's own EOS


class OutputText:
    """One sequence's text. `eos_ids` are the end tokens of the model itself; all others that end it are the caller's.

    Text that may be the beginning of a stop string is held back until that is decided. The stop string that is
    complete first ends the answer. Of the logprob entries, the token in which the stop string begins is the last,
    whole, if a part of it belongs to the text; a stop token has one only if it is part of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: TextOptions,
        *,
        eos_ids: Collection[int] = (),
        with_logprobs: bool = False,
    ) -> None:
        self._options = options
        self._eos_ids = eos_ids
        self._stream = tokenizer.detokenizer(skip_special=options.skip_special_tokens)
        self._stops = StopStrings(options.stop)
        self._infos = TokenInfos(tokenizer, skip_special=options.skip_special_tokens) if with_logprobs else None
        self._is_plain = not self._stops and not with_logprobs
        self._held = ""  # decoded, but not final
        self._pieces: list[str] = []  # final, for the delta in the making
        self._num_final = 0  # characters released
        self._num_tokens = 0
        self.is_finished = False

    def take(self, outputs: Sequence[TokenOutput]) -> TextDelta:
        """The outputs in order; none of them may be an error. Empty when the answer has ended before."""
        if self.is_finished or not outputs:
            return TextDelta()
        return self._take_plain(outputs) if self._is_plain else self._take_each(outputs)

    def _take_plain(self, outputs: Sequence[TokenOutput]) -> TextDelta:
        """Without stop strings or entries no token needs to be looked at by itself."""
        last = outputs[-1]
        ids = [token_id for output in outputs for token_id in output.token_ids]
        num_tokens = len(ids)
        if last.finish_reason is None:
            return TextDelta(self._stream.push(ids), ids, [], num_tokens)
        if self._hides_last_token(last):
            ids.pop()
        delta = TextDelta(self._stream.push(ids) + self._stream.finish(), ids, [], num_tokens)
        return self._end_as(last, delta)

    def _take_each(self, outputs: Sequence[TokenOutput]) -> TextDelta:
        delta = TextDelta()
        for output in outputs:
            match = self._add_tokens(output, delta)
            if match is None and output.finish_reason is not None:
                match = self._add_text(self._stream.finish())
            if match is not None:
                return self._end_at(match, delta)
            self._release(len(self._held) - self._stops.num_held)
        if outputs[-1].finish_reason is not None:
            self._release(len(self._held))
            return self._end_as(outputs[-1], self._complete(delta))
        return self._complete(delta)

    def _add_tokens(self, output: TokenOutput, delta: TextDelta) -> StopMatch | None:
        """Up to the one that completes a stop string."""
        num_shown = len(output.token_ids) - self._hides_last_token(output)
        for index, token_id in enumerate(output.token_ids):
            delta.num_tokens += 1
            self._num_tokens += 1
            if index == num_shown:
                break
            delta.token_ids.append(token_id)
            if (match := self._add_token(output, index)) is not None:
                return match
        return None

    def _add_token(self, output: TokenOutput, index: int) -> StopMatch | None:
        start, was_open = self._num_final + len(self._held), self._stream.has_open_character
        piece = self._stream.push(output.token_ids[index : index + 1])
        if self._infos is not None:
            # An open character is at least one character of text to come.
            end = start + len(piece) + self._stream.has_open_character
            self._infos.add(output, index, start, end, follows_open=was_open)
        return self._add_text(piece)

    def _add_text(self, piece: str) -> StopMatch | None:
        """A match's end is one in the text that is held."""
        num_before = len(self._held)
        self._held += piece
        match = self._stops.find(piece, counts=self._num_tokens >= self._options.min_tokens)
        return None if match is None else match._replace(end=num_before + match.end)

    def _release(self, num_chars: int) -> None:
        self._num_final += num_chars
        self._pieces.append(self._held[:num_chars])
        self._held = self._held[num_chars:]

    def _complete(self, delta: TextDelta) -> TextDelta:
        """With what has been released."""
        delta.text = "".join(self._pieces)
        self._pieces.clear()
        if self._infos is not None:
            delta.tokens = self._infos.release(self._num_final)
        return delta

    def _end_at(self, match: StopMatch, delta: TextDelta) -> TextDelta:
        self._release(match.end if self._options.include_stop else match.end - len(match.string))
        self._complete(delta)
        if self._infos is not None:
            delta.tokens += self._infos.release_begun(self._num_final)
        self.is_finished = True
        delta.finish_reason, delta.stop_reason = "stop", match.string
        return delta

    def _end_as(self, last: TokenOutput, delta: TextDelta) -> TextDelta:
        """As the engine says."""
        self.is_finished = True
        delta.finish_reason = "length" if last.finish_reason == "length" else "stop"
        delta.stop_reason = None if last.stop_token_id in self._eos_ids else last.stop_token_id
        return delta

    def _hides_last_token(self, output: TokenOutput) -> bool:
        """Whether it is a stop token that is no part of the text."""
        if output.stop_token_id is None:
            return False
        return not self._options.include_stop or output.stop_token_id in self._eos_ids
