"""A file of KV blocks: what one process publishes there, the next one finds, unless something is amiss."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from roseinfer.cache.kept_blocks import NO_DIGEST, KeptBlocks

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")

IDENTITY, OTHER = b"i" * 32, b"o" * 32
FIRST, SECOND = b"1" * 32, b"2" * 32
BLOCK_BYTES = 400_000
CONTENT = b"content" * 150_000


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def kept(fd: int, identity: bytes = IDENTITY, num_blocks: int = 3, *, is_sound: bool = True) -> KeptBlocks:
    return KeptBlocks(os.dup(fd), identity, num_blocks, BLOCK_BYTES, is_sound=is_sound)


def fill(fd: int) -> KeptBlocks:
    blocks = kept(fd)
    blocks.write(0, FIRST)
    blocks.write(2, SECOND)
    os.pwrite(fd, CONTENT, blocks.offset)
    blocks.close_file()
    return blocks


def test_an_empty_file_lists_nothing(fd: int) -> None:
    assert kept(fd).digests() == {}


def test_what_was_published_is_found_by_the_next(fd: int) -> None:
    last = fill(fd)
    blocks = kept(fd)
    assert blocks.digests() == {0: FIRST, 2: SECOND}
    assert os.pread(fd, 7, blocks.offset) == b"content"
    last.wipe(0)  # seen by everybody, as it is the same memory
    assert blocks.digests() == {2: SECOND}


@pytest.mark.parametrize(
    "change", [{"is_sound": False}, {"identity": OTHER}, {"num_blocks": 1000}], ids=["unsound", "identity", "size"]
)
def test_what_cannot_be_trusted_is_dropped_with_its_memory(fd: int, change: dict[str, object]) -> None:
    fill(fd)
    blocks = kept(fd, **change)  # type: ignore[arg-type]
    assert blocks.digests() == {}
    assert os.pread(fd, 7, blocks.offset) == bytes(7)
    assert os.fstat(fd).st_blocks * 512 < len(CONTENT)


def test_a_digest_that_was_half_written_names_nothing_that_there_is(fd: int) -> None:
    blocks = kept(fd)
    blocks.write(1, FIRST)
    os.pwrite(fd, NO_DIGEST[:16], 32 * 2)  # of a wipe, or of another digest, whose writer was killed
    assert blocks.digests() == {1: NO_DIGEST[:16] + FIRST[16:]}


def test_blocks_lie_within_the_file_and_apart_from_the_list(fd: int) -> None:
    blocks = kept(fd, num_blocks=100_000)
    assert blocks.offset >= 32 * 100_001
    assert os.fstat(fd).st_size >= blocks.offset + 100_000 * BLOCK_BYTES
