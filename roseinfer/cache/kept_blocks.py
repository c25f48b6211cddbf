"""KV blocks in a file in memory that outlives the process which computed them, and the list of what they hold.

    identity    32 bytes, of what the blocks' content depends on beside the tokens
    records     40 bytes for each block: the digest of its content if it is published, otherwise zeros; and its turn
    blocks      from the next large page on

The process may be killed between any two instructions, and what it has left is right all the same: a digest is written
behind the block that it names and wiped before that block is used again, and half a digest is nobody's. Turns say which
block goes first where memory is needed, the lowest; a wrong one costs time, nothing else.
"""

from __future__ import annotations

import mmap
import os
import struct

DIGEST_BYTES = 32
RECORD_BYTES = DIGEST_BYTES + 8
LARGE_PAGE = 2 << 20
NO_DIGEST = bytes(DIGEST_BYTES)
_HELD = 1 << 63  # the turn of a block that is held: behind all others, and the later it was taken the sooner
_pack_turn = struct.Struct("<Q").pack_into
_unpack_turn = struct.Struct("<Q").unpack_from


class KeptBlocks:
    """The file of `num_blocks` blocks of `block_bytes`. Takes the descriptor over.

    The content that is there is kept if its identity is `identity` and its size is right; otherwise the file is
    emptied, which gives its memory back. Raises OSError where the system does not grant it.

    `fd`, `offset`: where the blocks lie.
    """

    def __init__(self, fd: int, identity: bytes, num_blocks: int, block_bytes: int) -> None:
        self.fd = fd
        self.offset = offset = _large_pages(DIGEST_BYTES + RECORD_BYTES * num_blocks)
        self._num_blocks = num_blocks
        self._clock = 0
        size = offset + _large_pages(num_blocks * block_bytes)
        if os.fstat(fd).st_size != size or os.pread(fd, DIGEST_BYTES, 0) != identity:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
            os.pwrite(fd, identity, 0)
        self._list = mmap.mmap(fd, offset)

    def restore(self) -> dict[int, bytes]:
        """What was published by the last one, block by block as they are to be given up; nobody holds any of them."""
        digests = {block: self._digest(block) for block in range(self._num_blocks)}
        published = [block for block, digest in digests.items() if digest != NO_DIGEST]
        published.sort(key=self._turn)
        for block in published:
            self.leave(block)
        return {block: digests[block] for block in published}

    def publish(self, block: int, digest: bytes) -> None:
        """The block, which is held and full, has this content."""
        self.hold(block)
        start = _start(block)
        self._list[start : start + DIGEST_BYTES] = digest

    def wipe(self, block: int) -> None:
        """The block will be written again."""
        start = _start(block)
        self._list[start : start + DIGEST_BYTES] = NO_DIGEST

    def hold(self, block: int) -> None:
        """Somebody uses the published block."""
        self._clock += 1
        _pack_turn(self._list, _start(block) + DIGEST_BYTES, 2 * _HELD - 1 - self._clock)

    def leave(self, block: int) -> None:
        """Nobody uses the published block any more."""
        self._clock += 1
        _pack_turn(self._list, _start(block) + DIGEST_BYTES, self._clock)

    def close_file(self) -> None:
        """Once the blocks are mapped; the list goes on being kept."""
        os.close(self.fd)

    def _digest(self, block: int) -> bytes:
        start = _start(block)
        return self._list[start : start + DIGEST_BYTES]

    def _turn(self, block: int) -> int:
        turn: int = _unpack_turn(self._list, _start(block) + DIGEST_BYTES)[0]
        return turn


def _start(block: int) -> int:
    return DIGEST_BYTES + RECORD_BYTES * block


def _large_pages(num_bytes: int) -> int:
    """So many bytes, made up to whole large pages."""
    return -(-num_bytes // LARGE_PAGE) * LARGE_PAGE
