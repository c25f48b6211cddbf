"""Zip archives of stored entries, as torch.save writes them: each entry is a view into the file.

The zipfile module would inflate entries and copy them; this reads the central directory only, proves that every entry
lies in the file and overlaps no other, and refuses compression, encryption and several disks.
Specification: APPNOTE.TXT 6.3, sections 4.3.7, 4.3.12 and 4.3.14-4.5.3.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from roseinfer.checkpoints._files import Bytes, about
from roseinfer.checkpoints._spans import require_disjoint
from roseinfer.core.errors import CheckpointError

MAX_ENTRIES = 200_000
_MAX_COMMENT = 0xFFFF
_IN_ZIP64 = 0xFFFFFFFF

_END = Struct("<4s4H2IH")  # magic, disk ×2, entries ×2, directory size, directory offset, comment length
_END64_LOCATOR = Struct("<4sIQI")  # magic, disk, offset of _END64, disks
_END64 = Struct("<4sQ2H2I4Q")  # magic, size, versions ×2, disk ×2, entries ×2, directory size, directory offset
_ENTRY = Struct("<4s6H3I5H2I")  # see _Entry
_LOCAL = Struct("<4s5H3I2H")  # magic, version, flags, method, time, date, crc, sizes ×2, name and extra length


class _Directory(NamedTuple):
    num_entries: int
    num_bytes: int
    offset: int


class _Entry(NamedTuple):
    name: str
    num_bytes: int
    offset: int  # of the local header


def stored_entries(data: Bytes) -> dict[str, Bytes]:
    """The entries by name."""
    directory = _find_directory(data)
    entries: dict[str, Bytes] = {}
    spans = []
    for entry in _read_directory(data, directory):
        with about(f"zip entry {entry.name!r}"):
            if entry.name in entries:
                raise CheckpointError("is there twice")
            begin = _data_start(data, entry)
            end = begin + entry.num_bytes
            if end > directory.offset:
                raise CheckpointError("reaches beyond the entries' part of the file")
            entries[entry.name] = data[begin:end]
            spans.append((entry.offset, end, entry.name))
    require_disjoint(spans)
    return entries


def _unpack(layout: Struct, data: Bytes, offset: int, magic: bytes) -> tuple[int, ...]:
    """The fields behind the magic."""
    if not 0 <= offset <= len(data) - layout.size:
        raise CheckpointError("the zip archive ends early")
    found, *fields = layout.unpack(data[offset : offset + layout.size].tobytes())
    if found != magic:
        raise CheckpointError(f"no zip record {magic!r} at {offset}")
    return tuple(fields)


def _find_directory(data: Bytes) -> _Directory:
    tail = data[-(_END.size + _MAX_COMMENT) :].tobytes()
    found = tail.rfind(b"PK\5\6")
    if found < 0:
        raise CheckpointError("the zip archive has no end record: cut short?")
    offset = len(data) - len(tail) + found
    disk, first_disk, _, num_entries, num_bytes, start, _ = _unpack(_END, data, offset, b"PK\5\6")
    if _IN_ZIP64 in (num_bytes, start) or num_entries == 0xFFFF:
        disk, first_disk, num_entries, num_bytes, start = _zip64_directory(data, offset)
    if disk or first_disk:
        raise CheckpointError("one part of a split zip archive")
    if start + num_bytes > offset or num_entries > min(MAX_ENTRIES, num_bytes // _ENTRY.size):
        raise CheckpointError("the zip directory does not fit in the file")
    return _Directory(num_entries, num_bytes, start)


def _zip64_directory(data: Bytes, end_offset: int) -> tuple[int, int, int, int, int]:
    _, offset, _ = _unpack(_END64_LOCATOR, data, end_offset - _END64_LOCATOR.size, b"PK\6\7")
    _, _, _, disk, first_disk, _, num_entries, num_bytes, start = _unpack(_END64, data, offset, b"PK\6\6")
    return disk, first_disk, num_entries, num_bytes, start


def _read_directory(data: Bytes, directory: _Directory) -> list[_Entry]:
    records = data[directory.offset : directory.offset + directory.num_bytes]
    entries, position = [], 0
    for index in range(directory.num_entries):
        with about(f"zip directory entry {index}"):
            entry, position = _read_entry(records, position)
            entries.append(entry)
    return entries


def _read_entry(records: Bytes, position: int) -> tuple[_Entry, int]:
    """The entry at `position`, and the next position."""
    fields = _unpack(_ENTRY, records, position, b"PK\1\2")
    _, _, flags, method, _, _, _, packed_bytes, num_bytes, name_len, extra_len, comment_len, _, _, _, offset = fields
    name_end = position + _ENTRY.size + name_len
    name = _name(records[position + _ENTRY.size : name_end].tobytes(), name_len)
    extra = records[name_end : name_end + extra_len].tobytes()
    num_bytes, packed_bytes, offset = _zip64_sizes(extra, num_bytes, packed_bytes, offset)
    if method or flags & 1 or num_bytes != packed_bytes:
        raise CheckpointError(f"{name!r} is compressed or encrypted, which torch.save never does")
    return _Entry(name, num_bytes, offset), name_end + extra_len + comment_len


def _name(raw: bytes, length: int) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError("its name is not UTF-8") from error
    if len(raw) != length or "\0" in name:
        raise CheckpointError("its name is cut short or holds a NUL")
    return name


def _zip64_sizes(extra: bytes, *fields: int) -> list[int]:
    """The fields, those that are 0xFFFFFFFF replaced, in their order, by the 64-bit ones of extra block 1."""
    if _IN_ZIP64 not in fields:
        return list(fields)
    wide = iter(_zip64_block(extra))
    try:
        return [next(wide) if value == _IN_ZIP64 else value for value in fields]
    except StopIteration:
        raise CheckpointError("its 64-bit sizes are missing") from None


def _zip64_block(extra: bytes) -> list[int]:
    position = 0
    while position + 4 <= len(extra):
        kind, size = (int.from_bytes(extra[at : at + 2], "little") for at in (position, position + 2))
        block = extra[position + 4 : position + 4 + size]
        if kind == 1:
            return [int.from_bytes(block[at : at + 8], "little") for at in range(0, len(block) - 7, 8)]
        position += 4 + size
    return []


def _data_start(data: Bytes, entry: _Entry) -> int:
    _, flags, method, *_, name_len, extra_len = _unpack(_LOCAL, data, entry.offset, b"PK\3\4")
    start = entry.offset + _LOCAL.size
    if method or flags & 1 or data[start : start + name_len].tobytes() != entry.name.encode():
        raise CheckpointError("its two headers differ")
    return start + name_len + extra_len
