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


def damage_by_skipping_a_fresh_block(pool: BlockPool, block: int) -> None:
    pool._first_fresh += 1


def damage_by_double_free(pool: BlockPool, block: int) -> None:
    pool._free.append(block)


def damage_by_lost_holder(pool: BlockPool, block: int) -> None:
    pool._ref_counts[block] += 1


def damage_by_stale_digest(pool: BlockPool, block: int) -> None:
    pool._block_of[b"gone"] = block


def damage_by_publishing_a_free_block(pool: BlockPool, block: int) -> None:
    pool.publish(pool._free[-1], b"free")


def damage_by_publishing_a_fresh_block(pool: BlockPool, block: int) -> None:
    pool.publish(pool._first_fresh, b"fresh")


def damage_by_use_without_memory(pool: BlockPool, block: int) -> None:
    pool._num_backed = 1


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_leak,
        damage_by_skipping_a_fresh_block,
        damage_by_double_free,
        damage_by_lost_holder,
        damage_by_stale_digest,
        damage_by_publishing_a_free_block,
        damage_by_publishing_a_fresh_block,
        damage_by_use_without_memory,
    ],
)
def test_the_check_finds_damage(damage: object) -> None:
    pool = BlockPool(4)
    block, freed = pool.allocate(2)
    pool.release([freed])
    pool.check([[block]])
    assert callable(damage)
    damage(pool, block)
    with pytest.raises(AssertionError):
        pool.check([[block]])


class Device:
    """Grants memory in slabs of `slab` blocks, `limit` blocks at most; remembers what it was asked for."""

    def __init__(self, limit: int, slab: int = 1) -> None:
        self.limit = limit
        self.slab = slab
        self.capacity = 0
        self.asked: list[int] = []

    def reserve(self, num_blocks: int) -> int:
        self.asked.append(num_blocks)
        wanted = -(-num_blocks // self.slab) * self.slab
        self.capacity = max(self.capacity, min(wanted, self.limit // self.slab * self.slab))
        return self.capacity


def test_memory_is_asked_for_with_the_first_use_only() -> None:
    device = Device(limit=8, slab=4)
    pool = BlockPool(8, reserve=device.reserve)
    assert (pool.num_available, device.asked) == (8, [])
    blocks = pool.allocate(3)
    assert (blocks, device.asked, device.capacity) == ([0, 1, 2], [3], 4)
    pool.release(blocks)
    assert sorted(pool.allocate(4)) == [0, 1, 2, 3]
    assert device.asked == [3]
    assert pool.can_allocate(4)
    assert (device.asked, device.capacity) == ([3, 8], 8)
    assert pool.allocate(4) == [4, 5, 6, 7]
    assert device.asked == [3, 8]


def test_what_the_device_does_not_grant_is_given_up_for_good(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(limit=5)
    pool = BlockPool(8, reserve=device.reserve)
    blocks = pool.allocate(4)
    assert caplog.text == ""
    assert not pool.can_allocate(2)
    assert (pool.num_blocks, pool.num_available, pool.num_free, pool.num_tokens) == (5, 1, 1, 80)
    assert len(caplog.records) == 1
    assert "memory for 80 tokens of KV cache, not for the 128 that were planned" in caplog.text
    assert "--kv-cache-memory" in caplog.text
    with pytest.raises(EngineError, match="2 KV blocks asked for, 1 of 5"):
        pool.allocate(2)
    pool.check([blocks])
    device.limit = 8
    assert pool.allocate(1) == [4]
    assert not pool.can_allocate(1)
    assert len(caplog.records) == 1


def test_cached_blocks_are_evicted_where_the_device_has_no_more() -> None:
    device = Device(limit=3)
    pool = BlockPool(8, reserve=device.reserve)
    blocks = pool.allocate(3)
    pool.publish(blocks[0], b"a")
    pool.publish(blocks[1], b"b")
    pool.release(blocks[:2])
    assert pool.can_allocate(2)
    assert (pool.num_free, pool.num_cached) == (0, 2)
    assert pool.allocate(2) == blocks[:2]
    assert pool.find(b"a") is None
    assert not pool.can_allocate(1)


def test_more_than_there_can_be_is_not_asked_of_the_device() -> None:
    device = Device(limit=8)
    pool = BlockPool(8, reserve=device.reserve)
    assert not pool.can_allocate(9)
    assert device.asked == []


def test_a_device_without_any_memory_leaves_an_empty_pool() -> None:
    pool = BlockPool(8, reserve=Device(limit=0).reserve)
    assert not pool.can_allocate(1)
    assert (pool.num_blocks, pool.num_available, pool.num_tokens) == (0, 0, 0)
    pool.check([])


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")
def test_kept_blocks_do_not_wait_for_memory() -> None:
    kept = KeptBlocks(os.memfd_create("test"), b"i" * 32, 7, 1)
    kept.close_file()
    with pytest.raises(ValueError, match="have their memory already"):
        BlockPool(7, kept=kept, reserve=Device(limit=7).reserve)


def digest_of(content: int) -> bytes:
    return bytes([content + 1]) * 32


class PoolMachine(RuleBasedStateMachine):
    """Against a model that knows only the held tables and the published contents."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[int]] = []
        self.pool = self.new_pool()

    def new_pool(self) -> BlockPool:
        return BlockPool(7, 4)

    @property
    def num_blocks(self) -> int:
        """That can be there at most, as far as anybody knows now."""
        return 7

    @rule(count=st.integers(0, 8))
    def allocate(self, count: int) -> None:
        before = self.pool.num_available
        if self.pool.can_allocate(count):
            self.tables.append(self.pool.allocate(count))
            assert len(set(self.tables[-1])) == count <= before
        else:
            assert count > self.pool.num_available
            with pytest.raises(EngineError):
                self.pool.allocate(count)

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
        assert self.pool.num_available == self.num_blocks - len(held)


class KeptPoolMachine(PoolMachine):
    """A pool whose blocks outlive it."""

    def new_pool(self) -> BlockPool:
        self.file = os.memfd_create("test")
        return BlockPool(7, 4, self.kept())

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


class GrowingPoolMachine(PoolMachine):
    """A pool on a device whose memory others take and give back at any time."""

    def new_pool(self) -> BlockPool:
        self.device = Device(limit=7)
        self.is_denied = False
        return BlockPool(7, 4, reserve=self.reserve)

    def reserve(self, num_blocks: int) -> int:
        assert not self.is_denied, "blocks that were given up are asked for"
        assert num_blocks > self.device.capacity, "blocks that have memory are asked for"
        capacity = self.device.reserve(num_blocks)
        self.is_denied = capacity < num_blocks
        return capacity

    @property
    def num_blocks(self) -> int:
        return self.device.capacity if self.is_denied else 7

    @rule(limit=st.integers(0, 7), slab=st.integers(1, 3))
    def use_device_otherwise(self, limit: int, slab: int) -> None:
        self.device.limit, self.device.slab = limit, slab

    @invariant()
    def used_blocks_have_memory(self) -> None:
        held = {block for table in self.tables for block in table}
        assert max(held, default=-1) < self.device.capacity
        assert self.pool.num_blocks == self.num_blocks


class TestPool(PoolMachine.TestCase):  # type: ignore[misc]
    pass


class TestGrowingPool(GrowingPoolMachine.TestCase):  # type: ignore[misc]
    pass


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="there are no files in memory here")
class TestKeptPool(KeptPoolMachine.TestCase):  # type: ignore[misc]
    pass
