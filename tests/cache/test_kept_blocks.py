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


def kept(fd: int, identity: bytes = IDENTITY, num_blocks: int = 3) -> KeptBlocks:
    return KeptBlocks(os.dup(fd), identity, num_blocks, BLOCK_BYTES)


def fill(fd: int) -> KeptBlocks:
    blocks = kept(fd)
    blocks.publish(0, FIRST)
    blocks.publish(2, SECOND)
    os.pwrite(fd, CONTENT, blocks.offset)
    blocks.close_file()
    return blocks


def test_an_empty_file_lists_nothing(fd: int) -> None:
    assert kept(fd).restore() == {}


def test_what_was_published_is_found_by_the_next(fd: int) -> None:
    last = fill(fd)
    blocks = kept(fd)
    assert blocks.restore() == {0: FIRST, 2: SECOND}
    assert os.pread(fd, len(CONTENT), blocks.offset) == CONTENT
    last.wipe(0)  # seen by everybody, as it is the same memory
    assert blocks.restore() == {2: SECOND}


def test_blocks_go_as_they_would_have_gone(fd: int) -> None:
    """Those that nobody held first, the longest unused before the others; then the ends before what they build on."""
    last = kept(fd, num_blocks=8)
    digests = [bytes([number]) * 32 for number in range(1, 6)]
    for block, digest in enumerate(digests):
        last.publish(block, digest)
    last.leave(3)
    last.leave(1)
    assert list(kept(fd, num_blocks=8).restore()) == [3, 1, 4, 2, 0]
    assert list(kept(fd, num_blocks=8).restore()) == [3, 1, 4, 2, 0]  # nobody has touched them meanwhile


@pytest.mark.parametrize("change", [{"identity": OTHER}, {"num_blocks": 1000}], ids=["identity", "size"])
def test_what_does_not_belong_there_is_dropped_with_its_memory(fd: int, change: dict[str, object]) -> None:
    fill(fd)
    blocks = kept(fd, **change)  # type: ignore[arg-type]
    assert blocks.restore() == {}
    assert os.pread(fd, len(CONTENT), blocks.offset) == bytes(len(CONTENT))
    assert os.fstat(fd).st_blocks * 512 < len(CONTENT)


def test_a_digest_that_was_half_written_names_nothing_that_there_is(fd: int) -> None:
    blocks = kept(fd)
    blocks.publish(1, FIRST)
    os.pwrite(fd, NO_DIGEST[:16], 32 + 40)  # of a wipe, or of another digest, whose writer was killed
    assert blocks.restore() == {1: NO_DIGEST[:16] + FIRST[16:]}


def test_blocks_lie_within_the_file_and_apart_from_the_list(fd: int) -> None:
    blocks = kept(fd, num_blocks=100_000)
    assert blocks.offset >= 40 * 100_001
    assert os.fstat(fd).st_size >= blocks.offset + 100_000 * BLOCK_BYTES
