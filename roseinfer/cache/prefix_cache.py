"""Finds the KV blocks that already hold a request's leading tokens.

A full block is named by SHA-256 over its parent's digest and its own token ids, so a digest stands for the
whole prefix up to its end; the chain starts from a salt. Digests of different prefixes do not collide in
practice (2^-128), which is why a hit needs no comparison of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from roseinfer.cache.block_pool import BlockPool
from roseinfer.core.request import Request


class PrefixCache:
    """Reads and publishes the full blocks of a pool. `salt` separates caches that must never match."""

    def __init__(self, block_pool: BlockPool, salt: bytes = b"") -> None:
        self._pool = block_pool
        self._salt = sha256(salt).digest()

    def match(self, request: Request) -> list[int]:
        """The published blocks that continue those the request holds, in order; nothing is retained.

        At least the last token is left to compute, since its logits are wanted.
        """
        blocks = []
        for index in range(len(request.block_table), self._num_matchable_blocks(request)):
            block = self._pool.find(self._digest(request, index))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def wanted_digest(self, request: Request, index: int) -> bytes | None:
        """The digest of the request's block `index`, or None if that block cannot come from the cache."""
        return self._digest(request, index) if index < self._num_matchable_blocks(request) else None

    def digests(self, request: Request, start: int, stop: int) -> list[bytes]:
        """Of the full blocks [start, stop)."""
        return [self._digest(request, index) for index in range(start, stop)]

    def publish(self, request: Request, start: int, stop: int) -> None:
        """Publishes the computed full blocks [start, stop) of the request's table.

        Where another request has published the same content first, the table takes that block and drops its
        own: equal tokens have bitwise equal keys and values. So every holder of a published block holds its
        published parents, and a parent is never evicted before its children.
        """
        for index in range(start, stop):
            block = request.block_table[index]
            published = self._pool.publish(block, self._digest(request, index))
            if published != block:
                self._pool.retain(published)
                self._pool.release([block])
                request.block_table[index] = published

    def forget(self, blocks: Iterable[int]) -> None:
        """Blocks whose content cannot be trusted are never matched again."""
        for block in blocks:
            self._pool.unpublish(block)

    def _num_matchable_blocks(self, request: Request) -> int:
        return (request.num_tokens - 1) // self._pool.block_size

    def _digest(self, request: Request, index: int) -> bytes:
        digests, size = request.block_digests, self._pool.block_size
        for i in range(len(digests), index + 1):
            parent = digests[-1] if digests else sha256(self._salt + request.cache_salt).digest()
            token_ids = request.token_ids[i * size : (i + 1) * size]
            digests.append(sha256(parent + token_ids.tobytes()).digest())
        return digests[index]
