"""Names of control tokens in what callers write: text, and never the tokens.

Before a template is rendered each such name in the caller's strings is replaced by a private-use character that occurs
nowhere else; afterwards these are the names again, and known to be the caller's.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from roseinfer.core.errors import InvalidRequestError
from roseinfer.text.spm import AddedTokens

_PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_PRIVATE_RANGES = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))

Segment = tuple[str, bool]


@dataclass(frozen=True)
class RenderedPrompt:
    """`segments` join to `text`: (text, whether names of special tokens in it are the tokens). Where the caller wrote
    such names, whatever lies between two tokens of the template is one segment of plain text."""

    text: str
    segments: list[Segment]


class ControlNames:
    """The names that an encoder takes for control tokens. Thread safe."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = [name for name in dict.fromkeys(names) if name and not name.isspace()]
        self._splitter = AddedTokens({name: i for i, name in enumerate(self.names)})
        self._sorted = sorted(self.names)
        self._max_len = max(map(len, self.names), default=0)
        first_chars = "".join(sorted({re.escape(name[0]) for name in self.names}))
        self._first_char = re.compile(f"[{first_chars}]" if first_chars else "(?!)")

    def may_be_in(self, text: str) -> bool:
        """False if neither a name nor the beginning of one is in `text`."""
        return self._first_char.search(text) is not None

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Stretches of text, and whether each is a name: leftmost first, then longest."""
        for part in self._splitter.split(text):
            yield (part, False) if isinstance(part, str) else (self.names[part], True)

    def num_begun(self, text: str) -> int:
        """How many characters at the end of `text` are the beginning of a name."""
        starts = self._first_char.finditer(text, max(0, len(text) - self._max_len))
        return next((len(text) - start.start() for start in starts if self._is_begun(text[start.start() :])), 0)

    def _is_begun(self, text: str) -> bool:
        """Whether a name goes on from `text`. A plain word says nothing."""
        at = bisect_right(self._sorted, text)  # names that begin with it follow it at once
        return at < len(self._sorted) and self._sorted[at].startswith(text) and not text.isalnum()


class Mask:
    """Of one rendering. `used` are the private-use characters in the template and in what it gets."""

    def __init__(self, names: ControlNames, used: Collection[str]) -> None:
        self._names = names
        self._free = (chr(code) for codes in _PRIVATE_RANGES for code in codes if chr(code) not in used)
        self._border = self.new_char()
        self._char_of: dict[str, str] = {}

    def new_char(self) -> str:
        """A private-use character of one's own."""
        char = next(self._free, None)
        if char is None:
            raise InvalidRequestError("messages use up all private-use characters of Unicode", "messages")
        return char

    def hide(self, text: str, kept: Collection[str] = ()) -> str:
        """`text` with a character for each name but those in `kept`, and one more where a name begins at its end."""
        if not self._names.may_be_in(text):
            return text
        split = self._names.split(text)
        parts = [self._hidden(part) if is_name and part not in kept else part for part, is_name in split]
        end = len(parts[-1].rstrip()) if parts else 0  # templates strip
        if end and self._names.num_begun(parts[-1][:end]):
            parts[-1] = parts[-1][:end] + self._border + parts[-1][end:]
        return "".join(parts)

    def _hidden(self, name: str) -> str:
        if name not in self._char_of:
            self._char_of[name] = self.new_char()
        return self._char_of[name]

    def hidden_in(self, text: str) -> dict[str, str]:
        """Names by the characters that stand for them in `text`."""
        return {char: name for name, char in self._char_of.items() if char in text}

    def reveal(self, rendered: str) -> RenderedPrompt:
        hidden = self.hidden_in(rendered)
        if not hidden and self._border not in rendered:
            return RenderedPrompt(rendered, [(rendered, True)])
        segments = _Segments()
        for part in re.split(f"([{''.join(hidden)}])", rendered) if hidden else [rendered]:
            if part in hidden:
                segments.add_literal(hidden[part])
            else:
                self._add_text(part, segments)
        return segments.finish()

    def _add_text(self, text: str, segments: _Segments) -> None:
        """Without any hidden names; a name across a border is not the template's."""
        parts = text.split(self._border)
        borders, position = set(), 0
        for part in parts[:-1]:
            position += len(part)
            borders.add(position)
        position = 0
        for part, is_name in self._names.split("".join(parts)):
            inside = range(position + 1, position + len(part))
            position += len(part)
            if not is_name:
                segments.add_plain(part)
            elif any(border in inside for border in borders):
                segments.add_literal(part)
            else:
                segments.add_control(part)


class _Segments:
    """Gathers stretches between control tokens; those with a literal name are segments of their own."""

    def __init__(self) -> None:
        self._segments: list[tuple[list[str], bool]] = [([], True)]
        self._stretch: list[str] = []
        self._is_literal = False

    def add_plain(self, text: str) -> None:
        self._stretch.append(text)

    def add_literal(self, name: str) -> None:
        self._stretch.append(name)
        self._is_literal = True

    def add_control(self, name: str) -> None:
        self._close_stretch()
        self._append([name], True)

    def finish(self) -> RenderedPrompt:
        self._close_stretch()
        segments = [("".join(parts), is_parsed) for parts, is_parsed in self._segments if parts]
        return RenderedPrompt("".join(text for text, _ in segments), segments)

    def _close_stretch(self) -> None:
        self._append(self._stretch, not self._is_literal)
        self._stretch, self._is_literal = [], False

    def _append(self, parts: list[str], is_parsed: bool) -> None:
        if parts and self._segments[-1][1] == is_parsed:
            self._segments[-1][0].extend(parts)
        elif parts:
            self._segments.append((parts, is_parsed))


def private_use_in(value: Any) -> set[str]:
    """The private-use characters in all strings of JSON-like data."""
    found: set[str] = set()
    for text in _strings(value):
        if not text.isascii():
            found.update(_PRIVATE_USE.findall(text))
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def map_strings(change: Callable[[str], str], value: Any) -> Any:
    """JSON-like data with all its strings changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): map_strings(change, item) for key, item in value.items()}
    return [map_strings(change, item) for item in value] if isinstance(value, list) else value
