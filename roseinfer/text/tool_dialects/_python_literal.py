"""Python's literals, read as they arrive and given as JSON; JSON itself is taken, too."""

from __future__ import annotations

import json
import math
import re

from roseinfer.text.text_source import MalformedText, Steps, TextSource
from roseinfer.text.token_bytes import replace_surrogates

_MAX_DEPTH = 64

_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {**dict(zip("ntrbfva0\\'\"", "\n\t\r\b\f\v\a\0\\'\"", strict=True)), "\n": ""}
_NUM_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_CLOSERS = {"[": "]", "(": ")", "{": "}"}

_WORD_CHARS = re.compile(r"[\w.+-]*")
_STRING_CHARS = {quote: re.compile(rf"[^{quote}\\]*") for quote in "'\""}
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def read_python_literal(source: TextSource, depth: int = 0) -> Steps[str]:
    """The JSON text of the value that comes next. MalformedText if none does."""
    char = yield from source.peek()
    if char and char in "'\"":
        return _dump((yield from _read_string(source)))
    if char in _CLOSERS:
        if depth == _MAX_DEPTH:
            raise MalformedText
        return (yield from _read_nested(source, depth))
    return _constant((yield from source.run(_WORD_CHARS)))


def _dump(text: str) -> str:
    return json.dumps(replace_surrogates(text), ensure_ascii=False)


def _constant(word: str) -> str:
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if _JSON_NUMBER.fullmatch(word):
        return word
    try:
        number = float(word)
        value = number if set(word) & set(".eE") else int(word)
    except ValueError as error:
        raise MalformedText from error
    if not math.isfinite(number):
        raise MalformedText
    return json.dumps(value)


def _read_nested(source: TextSource, depth: int) -> Steps[str]:
    """A list, a tuple (as a list) or a dictionary."""
    opener = yield from source.next()
    items: list[str] = []
    while True:
        yield from source.skip_space()
        if (yield from source.at(_CLOSERS[opener])):
            break
        if items:
            yield from source.expect(",")
            yield from source.skip_space()
            if (yield from source.at(_CLOSERS[opener])):
                break
        items.append((yield from _read_item(source, depth, has_key=opener == "{")))
    joined = ", ".join(items)
    return f"{{{joined}}}" if opener == "{" else f"[{joined}]"


def _read_item(source: TextSource, depth: int, *, has_key: bool) -> Steps[str]:
    if not has_key:
        return (yield from read_python_literal(source, depth + 1))
    key = _dump((yield from _read_string(source)))
    yield from source.skip_space()
    yield from source.expect(":")
    yield from source.skip_space()
    return f"{key}: {(yield from read_python_literal(source, depth + 1))}"


def _read_string(source: TextSource) -> Steps[str]:
    quote = yield from source.next()
    if quote not in _STRING_CHARS:
        raise MalformedText
    end = quote * 3 if (yield from source.at(quote * 2)) else quote
    parts = []
    while True:
        parts.append((yield from source.run(_STRING_CHARS[quote])))
        if (yield from source.at(end)):
            return "".join(parts)
        char = yield from source.next()
        parts.append((yield from _read_escape(source)) if char == "\\" else char)


def _read_escape(source: TextSource) -> Steps[str]:
    char = yield from source.next()
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char not in _NUM_HEX_DIGITS:
        return "\\" + char
    digits = ""
    for _ in range(_NUM_HEX_DIGITS[char]):
        digits += yield from source.next()
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError) as error:
        raise MalformedText from error
