from __future__ import annotations

import os

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.kept_blocks import NO_DIGEST, KeptBlocks
from roseinfer.core.errors import EngineError


def counts(pool: BlockPool) -> tuple[int, int]:
    return pool.num_free, pool.num_cached


def test_allocated_blocks_are_distinct_and_come_back() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    assert len(set(blocks)) == 3
    assert counts(pool) == (1, 0)
    pool.release(blocks)
    assert counts(pool) == (4, 0)


def test_too_large_an_allocation_takes_nothing() -> None:
    pool = BlockPool(2)
    with pytest.raises(EngineError, match="3 KV blocks"):
        pool.allocate(3)
    assert counts(pool) == (2, 0)


def test_a_block_is_freed_by_its_last_holder() -> None:
    pool = BlockPool(1)
    (block,) = pool.allocate(1)
    pool.retain(block)
    pool.release([block])
    assert counts(pool) == (0, 0)
    pool.release([block])
    assert counts(pool) == (1, 0)


def test_a_published_block_stays_cached_until_its_memory_is_needed() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    assert pool.publish(block, b"a") == block
    pool.release([block])
    assert counts(pool) == (1, 1)
    assert pool.find(b"a") == block
    pool.allocate(1)
    assert pool.find(b"a") == block
    pool.allocate(1)
    assert pool.find(b"a") is None


def test_the_least_recently_used_block_is_evicted_first() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate(3)
    for block, digest in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.publish(block, digest)
    pool.release(blocks)
    pool.retain(blocks[0])  # used again: now the most recent
    pool.release(blocks[:1])
    pool.allocate(2)
    assert [pool.find(digest) is not None for digest in (b"a", b"b", b"c")] == [True, False, False]


def test_a_second_block_of_the_same_content_is_not_published() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"a")
    assert pool.publish(second, b"a") == first
    pool.release([second, first])
    assert counts(pool) == (1, 1)


def test_unpublishing_frees_a_cached_block_and_keeps_a_held_one() -> None:
    pool = BlockPool(2)
    held, cached = pool.allocate(2)
    pool.publish(held, b"h")
    pool.publish(cached, b"c")
    pool.release([cached])
    for block in (held, cached, held):
        pool.unpublish(block)
    assert counts(pool) == (1, 0)
    assert pool.find(b"h") is None
    pool.check([[held]])


@pytest.mark.parametrize("num_blocks", [0, -1])
def test_an_empty_pool_is_refused(num_blocks: int) -> None:
    with pytest.raises(ValueError, match="cannot hold anything"):
        BlockPool(num_blocks)


def damage_by_leak(pool: BlockPool, block: int) -> None:
    pool._free.pop()


def damage_by_double_free(pool: BlockPool, block: int) -> None:
    pool._free.append(block)


def damage_by_lost_holder(pool: BlockPool, block: int) -> None:
    pool._ref_counts[block] += 1


def damage_by_stale_digest(pool: BlockPool, block: int) -> None:
    pool._block_of[b"gone"] = block


def damage_by_publishing_a_free_block(pool: BlockPool, block: int) -> None:
    pool.publish(pool._free[-1], b"free")


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_leak,
        damage_by_double_free,
        damage_by_lost_holder,
        damage_by_stale_digest,
        damage_by_publishing_a_free_block,
    ],
)
def test_the_check_finds_damage(damage: object) -> None:
    pool = BlockPool(4)
    (block,) = pool.allocate(1)
    pool.check([[block]])
    assert callable(damage)
    damage(pool, block)
    with pytest.raises(AssertionError):
        pool.check([[block]])


def digest_of(content: int) -> bytes:
    return bytes([content + 1]) * 32


class PoolMachine(RuleBasedStateMachine):
    """Against a model that knows only the held tables and the published contents."""

    def __init__(self) -> None:
        super().__init__()
        self.file = os.memfd_create("test")
        self.pool = BlockPool(7, 4, self.kept())
        self.tables: list[list[int]] = []

    @rule(count=st.integers(0, 4))
    def allocate(self, count: int) -> None:
        if count <= self.pool.num_available:
            self.tables.append(self.pool.allocate(count))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        for block in table:
            self.pool.retain(block)
        self.tables.append(list(table))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(reversed(table))

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), content=st.integers(0, 4))
    def publish(self, data: st.DataObject, content: int) -> None:
        block = data.draw(st.sampled_from([block for table in self.tables for block in table]))
        if not self.pool.is_published(block):
            digest = digest_of(content)
            assert self.pool.publish(block, digest) == self.pool.find(digest)

    @rule(content=st.integers(0, 4))
    def take_from_cache(self, content: int) -> None:
        block = self.pool.find(digest_of(content))
        if block is not None:
            self.pool.retain(block)
            self.tables.append([block])

    @rule(content=st.integers(0, 4))
    def unpublish(self, content: int) -> None:
        block = self.pool.find(digest_of(content))
        if block is not None:
            self.pool.unpublish(block)

    @invariant()
    def books_agree(self) -> None:
        self.pool.check(self.tables)
        held = {block for table in self.tables for block in table}
        assert self.pool.num_available == 7 - len(held)

    def kept(self) -> KeptBlocks:
        kept = KeptBlocks(os.dup(self.file), b"i" * 32, 7, 1)
        kept.close_file()
        return kept

    def listed(self) -> dict[int, bytes]:
        records = os.pread(self.file, 7 * 40, 32)
        digests = {block: records[40 * block : 40 * block + 32] for block in range(7)}
        return {block: digest for block, digest in digests.items() if digest != NO_DIGEST}

    def teardown(self) -> None:
        os.close(self.file)

    @invariant()
    def kept_list_names_what_is_published(self) -> None:
        digests = [digest_of(content) for content in range(5)]
        found = {block: digest for digest in digests if (block := self.pool.find(digest)) is not None}
        assert self.listed() == found

    @rule()
    def start_anew(self) -> None:
        """As if the pool's process had been killed: all that was published is cached, the rest is free."""
        published = self.listed()
        self.pool, self.tables = BlockPool(7, 4, self.kept()), []
        assert counts(self.pool) == (7 - len(published), len(published))
        assert all(self.pool.find(digest) == block for block, digest in published.items())


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")
class TestPoolMachine(PoolMachine.TestCase):  # type: ignore[misc]
    pass
