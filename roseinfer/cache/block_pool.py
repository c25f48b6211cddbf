"""Who holds which KV block. Bookkeeping only: the memory itself belongs to the backend's program.

Every block is in exactly one of three places:

    free      no content                     allocate ─► in use      release ─► free, or cached if published
    in use    held by ref_count ≥ 1 requests
    cached    held by nobody, published      retain ─► in use        allocate ─► evicted, least recently used first

A published block is full, never written again, and found by the digest of its content.

Free blocks that were used before are used again first, then fresh ones in the order of their numbers: where a block
costs memory only from its first use on, a pool that is not full takes no more than it ever needed.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from roseinfer.cache.kept_blocks import KeptBlocks
from roseinfer.core.errors import EngineError

logger = logging.getLogger(__name__)

Reserve = Callable[[int], int]  # gets memory for the first n blocks, as far as it can; says how many have it now


class BlockPool:
    """`num_blocks` blocks of `block_size` token positions each. What `kept` lists is cached from the beginning.

    With `reserve`, fresh blocks have no memory until it is asked for. What it does not give, the pool gives up for
    good: `num_blocks` is smaller from then on.
    """

    def __init__(
        self, num_blocks: int, block_size: int = 16, kept: KeptBlocks | None = None, reserve: Reserve | None = None
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_size} tokens cannot hold anything")
        if kept is not None and reserve is not None:
            raise ValueError("blocks that were kept have their memory already")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._free: list[int] = []  # used before; a stack: the block used last is the warmest
        self._first_fresh = 0  # blocks from here on are free, too, and were never used
        self._reserve = reserve
        self._num_backed = 0 if reserve else num_blocks  # blocks from here on have no memory
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._digest_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._kept = kept
        if kept is not None:
            self._restore(kept.restore())

    # -- counts ---------------------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        return len(self._free) + self.num_blocks - self._first_fresh

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give, if the fresh ones get memory: `can_allocate` knows."""
        return self.num_free + self.num_cached

    @property
    def num_tokens(self) -> int:
        """Positions that the whole pool holds."""
        return self.num_blocks * self.block_size

    def ref_count(self, block: int) -> int:
        return self._ref_counts[block]

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # -- holding --------------------------------------------------------------------------------------------

    def can_allocate(self, count: int) -> bool:
        """Whether `allocate` can give `count` blocks now. Fresh ones among them get their memory here."""
        if count > self.num_available:
            return False
        num_fresh = min(count - len(self._free), self.num_blocks - self._first_fresh)
        if self._first_fresh + num_fresh > self._num_backed:
            self._back(self._first_fresh + num_fresh)
        return count <= self.num_available

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of undefined content, each held once; all or none."""
        if not self.can_allocate(count):
            raise EngineError(f"{count} KV blocks asked for, {self.num_available} of {self.num_blocks} available")
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def retain(self, block: int) -> None:
        """One more holder of a block that is in use or cached."""
        if self._ref_counts[block] == 0:
            del self._cached[block]
            if self._kept is not None:
                self._kept.hold(block)
        self._ref_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less of each, in the order given."""
        for block in blocks:
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._put_back(block)

    # -- publishing -----------------------------------------------------------------------------------------

    def publish(self, block: int, digest: bytes) -> int:
        """Makes a full block findable. Returns the block that stands for this content: an older one, if there is."""
        published = self._block_of.setdefault(digest, block)
        if published == block:
            self._digest_of[block] = digest
            if self._kept is not None:
                self._kept.publish(block, digest)
        return published

    def find(self, digest: bytes) -> int | None:
        """The published block of this content."""
        return self._block_of.get(digest)

    def is_published(self, block: int) -> bool:
        return block in self._digest_of

    def unpublish(self, block: int) -> None:
        """Makes a block unfindable; its holders keep it."""
        if block in self._digest_of:
            self._forget(block)
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    # -- parts ----------------------------------------------------------------------------------------------

    def _back(self, num_blocks: int) -> None:
        """Memory for the first `num_blocks` blocks, or an end to those that get none."""
        assert self._reserve is not None
        granted = self._reserve(num_blocks)
        self._num_backed = min(max(granted, self._num_backed), self.num_blocks)
        if self._num_backed < num_blocks:
            self._shrink(self._num_backed)

    def _shrink(self, num_blocks: int) -> None:
        """All blocks behind the first `num_blocks` are fresh."""
        size = self.block_size
        logger.warning(
            "the device has memory for %d tokens of KV cache, not for the %d that were planned; "
            "it stays at that, see --kv-cache-memory",
            num_blocks * size,
            self.num_blocks * size,
        )
        self.num_blocks = num_blocks
        del self._ref_counts[num_blocks:]

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        if self._first_fresh == self.num_blocks:
            return self._evict()
        self._first_fresh += 1
        return self._first_fresh - 1

    def _put_back(self, block: int) -> None:
        if block in self._digest_of:
            self._cached[block] = None
            if self._kept is not None:
                self._kept.leave(block)
        else:
            self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        del self._block_of[self._digest_of.pop(block)]
        if self._kept is not None:
            self._kept.wipe(block)

    def _restore(self, digests: dict[int, bytes]) -> None:
        self._digest_of = digests
        self._block_of = {digest: block for block, digest in digests.items()}
        self._cached = OrderedDict.fromkeys(digests)
        self._free = [block for block in range(self.num_blocks - 1, -1, -1) if block not in digests]
        self._first_fresh = self.num_blocks

    # -- checking -------------------------------------------------------------------------------------------

    def check(self, block_tables: Iterable[Iterable[int]]) -> None:
        """Raises AssertionError unless the books agree with `block_tables`, the tables of all holders."""
        holders = Counter(block for table in block_tables for block in table)
        counted = {block: count for block, count in enumerate(self._ref_counts) if count}
        assert dict(holders) == counted, f"held {dict(holders)}, counted {counted}"
        free = [*self._free, *range(self._first_fresh, self.num_blocks)]
        places = Counter([*free, *self._cached, *counted])
        sizes = f"{self.num_free} free + {self.num_cached} cached + {len(counted)} in use"
        assert places == Counter(range(self.num_blocks)), f"{sizes} are not the {self.num_blocks} blocks"
        sizes = f"{self._first_fresh} blocks were used, {self._num_backed} of {self.num_blocks} have memory"
        assert self._first_fresh <= self._num_backed <= self.num_blocks == len(self._ref_counts), sizes
        assert {d: b for b, d in self._digest_of.items()} == self._block_of, "digests and blocks disagree"
        assert self._digest_of.keys() >= self._cached.keys(), "a cached block is not published"
        assert self._digest_of.keys().isdisjoint(free), "a free block is published"
