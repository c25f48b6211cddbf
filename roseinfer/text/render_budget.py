"""How much one rendering of a chat template may cost. Templates come with model files, so they are not trusted.

A rendering cannot be killed from outside. Instead every loop step and every call asks here, and whatever could make a
huge value in a single operation is judged before it is made.
"""

from __future__ import annotations

import re
import time
from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from typing import Any, TypeVar

T = TypeVar("T")

_MAX_WIDTH = 1000  # of padding, indentation, formats and the like
_MAX_INT_BITS = 4096
_MADE_FACTOR = 128  # how many times the longest text may be made on the way to the result
_ITEM_COST = 64
_TICKS_PER_CHECK = 64
_WIDE_FORMAT = re.compile(r"\d{4}|\*|:[^{}]*\{")
_CONTAINERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class BudgetError(Exception):
    """The template does more than it may; the message ends a sentence that begins with "it"."""


class RenderBudget:
    """For one rendering: `max_chars` per text, `max_seconds` of the thread's own time."""

    def __init__(self, max_chars: int, max_seconds: float) -> None:
        self._max_chars = max_chars
        self._deadline = time.thread_time() + max_seconds
        self._num_ticks = 0
        self._made = 0

    def tick(self) -> None:
        self._num_ticks += 1
        if self._num_ticks % _TICKS_PER_CHECK == 0 and time.thread_time() > self._deadline:
            raise BudgetError("takes too long")

    def check_chars(self, num_chars: int) -> None:
        if num_chars > self._max_chars:
            raise BudgetError(f"makes more than {self._max_chars} characters of text")

    def charge(self, value: T) -> T:
        """Counts a value that was made, and hands it on."""
        if isinstance(value, str | bytes):
            self.check_chars(len(value))
            self._made += len(value)
        elif isinstance(value, list | tuple):
            self._made += len(value) * _ITEM_COST
        if self._made > self._max_chars * _MADE_FACTOR:
            raise BudgetError("makes too much text")
        return value

    def text_size(self, value: Any) -> int:
        """About how many characters `str(value)` has, without making it: lists may share their parts."""
        size = 0
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str | bytes):
                size += len(item)
            elif isinstance(item, Mapping):
                size += _ITEM_COST
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, _CONTAINERS):
                size += _ITEM_COST
                stack += item
            else:
                size += 1
            self.check_chars(size)
        return size

    def text(self, value: Any) -> str:
        """`str(value)`, unless it is too long."""
        if isinstance(value, str):
            return self.charge(value)
        self.text_size(value)
        return self.charge(str(value))

    def join(self, separator: Any, values: Iterable[Any]) -> str:
        parts = [self.text(value) for value in values]
        between = self.text(separator)
        self.check_chars(sum(map(len, parts)) + len(between) * len(parts))
        return between.join(parts)

    def check_width(self, *values: Any) -> None:
        """Of arguments that say how long something gets."""
        for value in values:
            if isinstance(value, int) and abs(value) > _MAX_WIDTH:
                raise BudgetError(f"asks for a width of more than {_MAX_WIDTH}")

    def check_replace(self, text: Any, old: Any, new: Any, *_: Any) -> None:
        text, old, new = self.text(text), self.text(old), self.text(new)
        if len(text) * max(1, len(new)) > self._max_chars:
            self.check_chars(len(text) + text.count(old) * len(new))

    def check_format(self, pattern: str, mark: str, values: Iterable[Any]) -> None:
        """`mark` begins a field."""
        if _WIDE_FORMAT.search(pattern):
            raise BudgetError("formats with a width that is too large or computed")
        longest = max([self.text_size(value) for value in values], default=0)
        self.check_chars(len(pattern) + pattern.count(mark) * longest)

    def check_operands(self, operator: str, left: Any, right: Any) -> None:
        """Of `left operator right`."""
        if operator == "%" and isinstance(left, str):
            self.check_format(left, "%", [right])
        elif isinstance(left, int) and isinstance(right, int):
            _check_integers(operator, left, right)
        elif operator == "*":
            self._check_repetition(left, right)

    def _check_repetition(self, left: Any, right: Any) -> None:
        sequence, count = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(count, int) and isinstance(sequence, str | list | tuple):
            self.check_chars(len(sequence) * count)


def _check_integers(operator: str, left: int, right: int) -> None:
    bits = left.bit_length()
    num_bits = bits * abs(right) if operator == "**" else bits + right.bit_length()
    if num_bits > _MAX_INT_BITS:
        raise BudgetError("computes with numbers that are too large")
