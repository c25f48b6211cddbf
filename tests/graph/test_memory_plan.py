"""The memory plan: buffers that live at the same time never overlap, and others do share memory."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.graph.memory import ALIGNMENT, Span, plan_memory


def make_span(size: int, first: int, length: int) -> Span:
    return Span(size, first, first + length)


SPANS = st.lists(st.builds(make_span, st.integers(1, 2000), st.integers(0, 15), st.integers(0, 8)), max_size=25)


def overlap_in_time(a: Span, b: Span) -> bool:
    return a.first <= b.last and b.first <= a.last


def most_alive(spans: list[Span]) -> int:
    return max((sum(s.size for s in spans if s.first <= t <= s.last) for t in range(30)), default=0)


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@settings(max_examples=200)
@given(SPANS)
def test_what_lives_together_lies_apart(spans: list[Span]) -> None:
    offsets, _ = plan_memory(spans)
    for (a, at_a), (b, at_b) in combinations(zip(spans, offsets, strict=True), 2):
        if overlap_in_time(a, b):
            assert at_a + a.size <= at_b or at_b + b.size <= at_a


@settings(max_examples=200)
@given(SPANS)
def test_the_total_holds_every_buffer_and_wastes_no_more_than_no_sharing(spans: list[Span]) -> None:
    offsets, total = plan_memory(spans)
    assert all(offset >= 0 and offset % ALIGNMENT == 0 for offset in offsets)
    assert all(offset + span.size <= total for span, offset in zip(spans, offsets, strict=True))
    assert most_alive(spans) <= total <= sum(aligned(span.size) for span in spans)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=10))
def test_buffers_one_after_the_other_share_one_place(sizes: list[int]) -> None:
    offsets, total = plan_memory([Span(size, i, i) for i, size in enumerate(sizes)])
    assert offsets == [0] * len(sizes)
    assert total == aligned(max(sizes))


def test_a_chain_takes_two_places() -> None:
    """Each op reads what the one before it wrote."""
    _, total = plan_memory([Span(1024, i, i + 1) for i in range(20)])
    assert total == 2 * 1024


def test_a_buffer_is_not_free_in_its_last_step() -> None:
    """An op must not write over what it still reads."""
    offsets, total = plan_memory([Span(64, 0, 3), Span(64, 3, 5)])
    assert sorted(offsets) == [0, 64]
    assert total == 128


def test_a_gap_between_two_buffers_is_used() -> None:
    offsets, total = plan_memory([Span(640, 0, 9), Span(320, 0, 2), Span(300, 0, 9), Span(128, 4, 9)])
    assert offsets == [0, 640, 960, 640]
    assert total == aligned(1260)


def test_nothing_takes_nothing() -> None:
    assert plan_memory([]) == ([], 0)
