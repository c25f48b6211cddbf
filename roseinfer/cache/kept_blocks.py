"""KV blocks in a file in memory that outlives the process which computed them, and the list of what they hold.

    identity    32 bytes, of what the blocks' content depends on beside the tokens
    digests     32 bytes for each block: of its content if it is published, otherwise zeros
    blocks      from the next large page on

The process may be killed between any two instructions, and what it has left is right all the same: a digest is written
behind the block that it names and wiped before that block is used again, and half a digest is nobody's.
"""

from __future__ import annotations

import mmap
import os

DIGEST_BYTES = 32
LARGE_PAGE = 2 << 20
NO_DIGEST = bytes(DIGEST_BYTES)


class KeptBlocks:
    """The file of `num_blocks` blocks of `block_bytes`. Takes the descriptor over.

    The content that is there is kept if `is_sound`, its identity is `identity` and its size is right; otherwise the
    file is emptied, which gives its memory back. Raises OSError where the system does not grant it.

    `fd`, `offset`: where the blocks lie.
    """

    def __init__(self, fd: int, identity: bytes, num_blocks: int, block_bytes: int, *, is_sound: bool) -> None:
        self.fd = fd
        self.offset = offset = _large_pages(DIGEST_BYTES * (1 + num_blocks))
        self._num_blocks = num_blocks
        size = offset + _large_pages(num_blocks * block_bytes)
        if not (is_sound and os.fstat(fd).st_size == size and os.pread(fd, DIGEST_BYTES, 0) == identity):
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
            os.pwrite(fd, identity, 0)
        self._list = mmap.mmap(fd, offset)

    def digests(self) -> dict[int, bytes]:
        """Of the blocks that have one."""
        found = ((block, self._list[self._place(block)]) for block in range(self._num_blocks))
        return {block: digest for block, digest in found if digest != NO_DIGEST}

    def write(self, block: int, digest: bytes) -> None:
        self._list[self._place(block)] = digest

    def wipe(self, block: int) -> None:
        self._list[self._place(block)] = NO_DIGEST

    def close_file(self) -> None:
        """Once the blocks are mapped; the list goes on being kept."""
        os.close(self.fd)

    def _place(self, block: int) -> slice:
        return slice(DIGEST_BYTES * (1 + block), DIGEST_BYTES * (2 + block))


def _large_pages(num_bytes: int) -> int:
    """So many bytes, made up to whole large pages."""
    return -(-num_bytes // LARGE_PAGE) * LARGE_PAGE
