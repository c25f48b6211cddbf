from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.cache.block_pool import BlockPool
from roseinfer.cache.prefix_cache import PrefixCache
from roseinfer.core.request import Request
from tests.fake_engine import make_request

BLOCK_SIZE = 4


def make(prompt_ids: list[int], cache_salt: str = "") -> Request:
    return Request(make_request("r", prompt_ids, cache_salt=cache_salt))


def compute(pool: BlockPool, cache: PrefixCache, request: Request) -> Request:
    """As if the request had computed all its tokens."""
    request.block_table.extend(pool.allocate(pool.num_blocks_for(request.num_tokens)))
    cache.publish(request, 0, request.num_tokens // pool.block_size)
    return request


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(32, BLOCK_SIZE)


@pytest.fixture
def cache(pool: BlockPool) -> PrefixCache:
    return PrefixCache(pool)


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (12, 2), (13, 3), (20, 3)]
)
def test_full_blocks_match_and_one_token_is_left(
    pool: BlockPool, cache: PrefixCache, num_tokens: int, num_blocks: int
) -> None:
    donor = compute(pool, cache, make(list(range(14))))  # three full blocks, two tokens in a fourth
    assert cache.match(make(list(range(num_tokens)))) == donor.block_table.tolist()[:num_blocks]


def test_a_block_matches_only_behind_its_own_prefix(pool: BlockPool, cache: PrefixCache) -> None:
    compute(pool, cache, make([1, 2, 3, 4, 5, 6, 7, 8, 0]))
    assert cache.match(make([5, 6, 7, 8, 0])) == []
    assert cache.match(make([0, 2, 3, 4, 5, 6, 7, 8, 0])) == []


def test_matching_goes_on_behind_the_blocks_held(pool: BlockPool, cache: PrefixCache) -> None:
    donor = compute(pool, cache, make(list(range(14))))
    request = make(list(range(14)))
    request.block_table.extend(donor.block_table.tolist()[:1])
    assert cache.match(request) == donor.block_table.tolist()[1:3]


def test_equal_content_is_kept_once(pool: BlockPool, cache: PrefixCache) -> None:
    tokens = list(range(10))
    first, second = compute(pool, cache, make(tokens)), compute(pool, cache, make(tokens))
    assert second.block_table.tolist()[:2] == first.block_table.tolist()[:2]
    assert second.block_table[2] != first.block_table[2]  # not full: each its own
    pool.check([first.block_table.tolist(), second.block_table.tolist()])
    assert pool.num_free == 32 - 4


def test_salts_keep_prefixes_apart(pool: BlockPool, cache: PrefixCache) -> None:
    tokens = list(range(10))
    compute(pool, cache, make(tokens, cache_salt="tenant a"))
    assert len(cache.match(make(tokens, cache_salt="tenant a"))) == 2
    assert cache.match(make(tokens, cache_salt="tenant b")) == []
    assert PrefixCache(pool, salt=b"other").match(make(tokens, cache_salt="tenant a")) == []


def test_forgotten_blocks_are_never_matched(pool: BlockPool, cache: PrefixCache) -> None:
    donor = compute(pool, cache, make(list(range(10))))
    cache.forget(donor.block_table.tolist())
    assert cache.match(make(list(range(10)))) == []
    pool.check([donor.block_table.tolist()])


def test_a_prefix_outlives_its_continuations(pool: BlockPool, cache: PrefixCache) -> None:
    request = compute(pool, cache, make(list(range(13))))
    pool.release(reversed(request.block_table.tolist()))
    pool.allocate(pool.num_free + 2)
    assert cache.match(make(list(range(13)))) == request.block_table.tolist()[:1]


def test_the_wanted_digest_is_one_that_somebody_publishes(pool: BlockPool, cache: PrefixCache) -> None:
    request = make(list(range(9)))
    donor = make(list(range(14)))
    assert [cache.wanted_digest(request, 0), cache.wanted_digest(request, 1)] == cache.digests(donor, 0, 2)
    assert cache.wanted_digest(request, 2) is None


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24), min_size=1, max_size=8))
def test_a_match_is_the_longest_true_prefix(prompts: list[list[int]]) -> None:
    pool = BlockPool(256, BLOCK_SIZE)
    cache = PrefixCache(pool)
    content: dict[int, list[int]] = {}  # block → all tokens up to its end
    for prompt in prompts:
        request = make(prompt)
        matched = cache.match(request)
        assert [content[block] for block in matched] == [prompt[: 4 * (i + 1)] for i in range(len(matched))]
        longest = max((len(c) for c in content.values() if c == prompt[: len(c)] and len(c) < len(prompt)), default=0)
        assert len(matched) * BLOCK_SIZE == longest
        compute(pool, cache, request)
        for i in range(len(prompt) // BLOCK_SIZE):
            content[request.block_table[i]] = prompt[: 4 * (i + 1)]
