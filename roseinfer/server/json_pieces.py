"""JSON of values that may be large: lists may be iterators, which are made as they are written.

Encoding holds the interpreter, and so all threads, until it is done. What an iterator yields is encoded a few items at
a time, and never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

ITEMS_AT_ONCE = 64  # places of a text; each with 20 likely tokens they take a quarter of a millisecond
PIECE_BYTES = 64 * 1024


def json_pieces(value: Any) -> list[bytes]:
    """In pieces of about PIECE_BYTES, for a value that is large because of the iterators in it. It uses them up."""
    pieces, parts, num_bytes = [], [], 0
    for part in _parts(value):
        parts.append(part)
        num_bytes += len(part)
        if num_bytes >= PIECE_BYTES:
            pieces.append(b"".join(parts))
            parts, num_bytes = [], 0
    return [*pieces, b"".join(parts)]


def _parts(value: Any) -> Iterator[bytes]:
    """Looks into objects, and into lists of objects: what else there is does not hold iterators."""
    if isinstance(value, dict) and value:
        yield from _object(value)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from _list(_parts(item) for item in value)
    elif isinstance(value, Iterator):
        yield from _list(iter([run]) for run in _runs(value))
    else:
        yield encode_json(value)


def _object(members: dict[str, Any]) -> Iterator[bytes]:
    before = b"{"
    for name, value in members.items():
        yield before + encode_json(name) + b":"
        yield from _parts(value)
        before = b","
    yield b"}"


def _list(items: Iterator[Iterator[bytes]]) -> Iterator[bytes]:
    before = b"["
    for parts in items:
        yield before
        yield from parts
        before = b","
    yield b"]" if before == b"," else b"[]"


def _runs(items: Iterator[Any]) -> Iterator[bytes]:
    """Some items at a time, as they stand between a list's brackets."""
    while run := list(islice(items, ITEMS_AT_ONCE)):
        yield encode_json(run)[1:-1]


def _write_out(value: Any) -> msgspec.Raw:
    if not isinstance(value, Iterator):
        raise TypeError(f"{type(value).__name__} is not for JSON")
    return msgspec.Raw(b"[" + b",".join(_runs(value)) + b"]")


# In one piece, for what is small mostly or has no iterators; those that there are it uses up as well.
encode_json = msgspec.json.Encoder(enc_hook=_write_out).encode
