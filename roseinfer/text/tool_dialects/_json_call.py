"""Calls written as a JSON object: `{"name": "f", "arguments": {...}}`.

Strict about the object and lenient about the arguments, which are passed on as they are: a client can tell its user
more about a broken argument than about an answer that is none.
"""

from __future__ import annotations

import json
import re

from roseinfer.text.text_source import MalformedText, Steps, TextSource
from roseinfer.text.token_bytes import replace_surrogates
from roseinfer.text.tool_dialects._call_events import CallEvents

_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
_OTHER_KEYS = frozenset({"id", "index", "type"})

_STRING_CHARS = re.compile(r'[^"\\]*')
_SCALAR_CHARS = re.compile(r"[^\s,}\]<\"]*")
_PLAIN_CHARS = re.compile(r'[^"{}\[\]<]*')


class JsonCall:
    """Reads one object. `closing` may end it early, where the model forgot a brace.

    `is_eager`: the name alone makes a call. Otherwise it takes arguments, too, and an object without them is malformed.
    """

    def __init__(self, source: TextSource, events: CallEvents, *, is_eager: bool, closing: str = "") -> None:
        self._source = source
        self._events = events
        self._closing = closing
        self._is_eager = is_eager
        self._name = ""
        self._arguments: str | None = None
        self._has_arguments = False
        self._is_started = False

    def read(self) -> Steps[None]:
        """The object. MalformedText if it is no call."""
        yield from self._source.expect("{")
        while True:
            yield from self._source.skip_space()
            key = yield from read_json_string(self._source)
            yield from self._source.skip_space()
            yield from self._source.expect(":")
            yield from self._source.skip_space()
            yield from self._read_value(key)
            yield from self._source.skip_space()
            if not (yield from self._source.at(",")):
                break
        yield from self._end()

    def _read_value(self, key: str) -> Steps[None]:
        if key == "name" and not self._name:
            yield from self._read_name()
        elif key in _ARGUMENT_KEYS and not self._has_arguments:
            self._has_arguments = True
            yield from self._read_arguments()
        elif key in _OTHER_KEYS:
            yield from skip_json_value(self._source, self._closing)
        else:
            raise MalformedText

    def _read_name(self) -> Steps[None]:
        self._name = yield from read_json_string(self._source)
        if not self._name:
            raise MalformedText
        if self._is_eager or self._has_arguments:
            self._start()

    def _read_arguments(self) -> Steps[None]:
        first = yield from self._source.peek()
        if self._name and first and first in "{[":
            self._start()
            with self._source.streaming(self._events.arguments):
                yield from skip_json_value(self._source, self._closing)
            return
        begin = self._source.num_held
        yield from skip_json_value(self._source, self._closing)
        self._arguments = _arguments_text(self._source.since(begin))
        if self._name:
            self._start()

    def _start(self) -> None:
        """Says what is known of the call, once each."""
        if not self._is_started:
            self._is_started = True
            self._events.start(self._name)
        if self._arguments is not None:
            self._events.arguments(self._arguments)
            self._arguments = None
        self._source.release()

    def _end(self) -> Steps[None]:
        if not self._is_started:
            yield from self._source.expect("}")
            raise MalformedText
        if not self._has_arguments:
            self._events.arguments("{}")
        is_complete = yield from self._source.at("}")
        if not is_complete and not (self._closing and (yield from self._source.comes(self._closing))):
            raise MalformedText
        self._source.release()


def _arguments_text(value: str) -> str:
    """Some models quote the arguments once more, or write null for none."""
    if value.startswith('"'):
        return _decode(value) or "{}"
    return "{}" if value == "null" else value


def read_json_string(source: TextSource) -> Steps[str]:
    """A string's value. MalformedText if there is none."""
    begin = source.num_held
    yield from _skip_string(source)
    return _decode(source.since(begin))


def _decode(string: str) -> str:
    try:
        return replace_surrogates(json.loads(string, strict=False))
    except ValueError as error:
        raise MalformedText from error


def skip_json_value(source: TextSource, closing: str = "") -> Steps[None]:
    """Reads a value; inside of objects and lists only strings and brackets count. Stops before `closing`."""
    first = yield from source.peek()
    if first and first in "{[":
        yield from _skip_nested(source, closing)
    elif first == '"':
        yield from _skip_string(source)
    elif not (yield from source.run(_SCALAR_CHARS)):
        raise MalformedText


def _skip_nested(source: TextSource, closing: str) -> Steps[None]:
    depth = 0
    while True:
        yield from source.run(_PLAIN_CHARS)
        char = yield from source.peek()
        if char == '"':
            yield from _skip_string(source)
            continue
        if char == "<" and closing and (yield from source.comes(closing)):
            return
        yield from source.next()
        depth += (char in "{[") - (char in "}]")
        if depth == 0:
            return


def _skip_string(source: TextSource) -> Steps[None]:
    yield from source.expect('"')
    while True:
        yield from source.run(_STRING_CHARS)
        if (yield from source.next()) == '"':
            return
        yield from source.next()
