"""Text that arrives in pieces, for parsers written as generators: where they need more of it, they yield.

A parser reads on without caring where the pieces were cut, and so gives the same result for every cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]  # yields where it waits for text, returns a T

_SPACE = re.compile(r"\s*")


class MalformedText(Exception):
    """The text is not what a parser expects; caught where the parser can take it for something else."""


class TextSource:
    """What was read counts as held until `release` hands it out, so that a parser can give back what it mistook."""

    def __init__(self) -> None:
        self._text = ""
        self._held = 0  # where it is held from; what comes before is cut off with the next piece
        self._position = 0  # how far it was read
        self._sink: Callable[[str], None] | None = None
        self.is_ended = False

    def feed(self, text: str) -> None:
        """A further piece."""
        self._text = self._text[self._held :] + text
        self._position -= self._held
        self._held = 0

    def end(self) -> None:
        """No more pieces come."""
        self.is_ended = True

    @property
    def num_held(self) -> int:
        """How many characters are held: where reading stands, for `since`, until the next release."""
        return self._position - self._held

    def since(self, num_held: int) -> str:
        """What was read from there on."""
        return self._text[self._held + num_held : self._position]

    def release(self) -> str:
        """What was read since the last release."""
        text = self._text[self._held : self._position]
        self._held = self._position
        return text

    @contextmanager
    def streaming(self, sink: Callable[[str], None]) -> Iterator[None]:
        """What is read inside goes to `sink`, at the latest when more text has to come."""
        self._sink = sink
        try:
            yield
        finally:
            self._sink = None
            sink(self.release())

    def wait(self) -> Steps[None]:
        """Until there is more text, or there is no more."""
        if self._sink is not None:
            self._sink(self.release())
        yield

    def peek(self) -> Steps[str]:
        """The next character, unread; "" at the end."""
        while self._position >= len(self._text) and not self.is_ended:
            yield from self.wait()
        return self._text[self._position : self._position + 1]

    def next(self) -> Steps[str]:
        """The next character. MalformedText at the end."""
        char = yield from self.peek()
        if not char:
            raise MalformedText
        self._position += 1
        return char

    def comes(self, literal: str) -> Steps[bool]:
        """Whether `literal` comes next; reads nothing."""
        while not self.is_ended and self._is_beginning_of(literal):
            yield from self.wait()
        return self._text.startswith(literal, self._position)

    def at(self, literal: str) -> Steps[bool]:
        """Whether `literal` comes next; reads it if so, and nothing otherwise."""
        found = yield from self.comes(literal)
        if found:
            self._position += len(literal)
        return found

    def _is_beginning_of(self, literal: str) -> bool:
        num_left = len(self._text) - self._position
        return num_left < len(literal) and literal.startswith(self._text[self._position :])

    def expect(self, literal: str) -> Steps[None]:
        """Reads `literal`. MalformedText if something else comes."""
        found = yield from self.at(literal)
        if not found:
            raise MalformedText

    def run(self, pattern: re.Pattern[str]) -> Steps[str]:
        """The longest run of `pattern`, which has to be a character class with `*`."""
        parts = []
        while True:
            match = pattern.match(self._text, self._position)
            if match is not None:
                parts.append(match.group())
                self._position = match.end()
            if self._position < len(self._text) or self.is_ended:
                return "".join(parts)
            yield from self.wait()

    def skip_space(self) -> Steps[None]:
        """Reads white space."""
        yield from self.run(_SPACE)

    def until(self, literal: str) -> Steps[str]:
        """What comes before `literal`, which is read too. MalformedText where it never comes, with nothing read."""
        num_searched = 0
        while (found := self._text.find(literal, self._position + num_searched)) < 0:
            if self.is_ended:
                raise MalformedText
            num_searched = max(0, len(self._text) - self._position - len(literal) + 1)
            yield from self.wait()
        text = self._text[self._position : found]
        self._position = found + len(literal)
        return text

    def until_any(self, search: MarkerSearch, take: Callable[[str], None]) -> Steps[str | None]:
        """The first marker of `search`, read but held, or None at the end; `take` gets the text before it, as it comes.

        Nothing may be held before.
        """
        while True:
            self._position, marker = search.find(self._text, self._position, is_final=self.is_ended)
            take(self.release())
            if marker is not None:
                self._position += len(marker)
            if marker is not None or self.is_ended:
                return marker
            yield from self.wait()


class MarkerSearch:
    """Finds the first of several strings in text that may go on."""

    def __init__(self, markers: Iterable[str]) -> None:
        # The longest first, so that a marker which begins another one does not hide it.
        self._markers = sorted(set(markers), key=lambda marker: (-len(marker), marker))
        self._pattern = re.compile("|".join(map(re.escape, self._markers)) or r"(?!)")
        self._starts = frozenset(marker[0] for marker in self._markers)

    def find(self, text: str, begin: int, *, is_final: bool) -> tuple[int, str | None]:
        """Up to where the text from `begin` on is surely no marker, and the marker that begins there, if one does."""
        match = self._pattern.search(text, begin)
        if match is not None:
            return match.start(), match.group()
        return (len(text) if is_final else self._open_end(text, begin)), None

    def _open_end(self, text: str, begin: int) -> int:
        """Where the longest end of `text` that may begin a marker does."""
        longest = len(self._markers[0]) - 1 if self._markers else 0
        for place in range(max(begin, len(text) - longest), len(text)):
            if text[place] in self._starts and any(marker.startswith(text[place:]) for marker in self._markers):
                return place
        return len(text)
