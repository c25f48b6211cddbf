"""The measured peaks: no figure that a core could not reach, or that says that a loop was optimised away."""

from __future__ import annotations

import pytest

from roseinfer.backends.native import _native

ISAS = _native.available_isas()
MAX_GIGAHERTZ = 6.5
MIN_GIGAHERTZ = 0.02  # of a core that others use as well
FASTEST = {  # operations per cycle of one core, on the widest there is
    ("scalar", "f32"): 32,
    ("avx2", "f32"): 32,
    ("avx2", "int8"): 128,
    ("avx512", "f32"): 64,
    ("avx512", "int8"): 256,
    ("avx512_bf16", "f32"): 64,
    ("avx512_bf16", "bf16"): 128,
    ("avx512_bf16", "int8"): 256,
}


@pytest.fixture(scope="module")
def pool() -> _native.ThreadPool:
    return _native.ThreadPool(1)


@pytest.mark.parametrize("isa", ISAS)
def test_kinds_are_what_the_kernels_have(isa: str) -> None:
    expected = {kind for level, kind in FASTEST if level == isa} | {"read"}
    assert set(_native.peak_kinds(isa)) == expected
    assert ("bf16" in expected) == _native.has_bf16_dot(isa)


@pytest.mark.parametrize(("isa", "kind"), [case for case in FASTEST if case[0] in ISAS])
def test_arithmetic_is_within_what_a_core_can_do(isa: str, kind: str, pool: _native.ThreadPool) -> None:
    gigaops = _native.measure_peak(kind, isa, pool, 0.002)
    assert MIN_GIGAHERTZ < gigaops / FASTEST[isa, kind] < MAX_GIGAHERTZ


@pytest.mark.parametrize("isa", ISAS)
def test_caches_are_faster_than_memory(isa: str, pool: _native.ThreadPool) -> None:
    cached, uncached = (
        max(_native.measure_peak("read", isa, pool, 0.002, size) for _ in range(3)) for size in (128 << 10, 256 << 20)
    )
    assert 0.05 < uncached < cached < 2 * 64 * MAX_GIGAHERTZ  # at most two loads of 64 bytes a cycle


def test_threads_share_the_bytes() -> None:
    assert _native.measure_peak("read", "auto", _native.ThreadPool(3), 0.002, 1 << 20) > 0.05
    with pytest.raises(ValueError, match="4096 bytes per thread"):
        _native.measure_peak("read", "auto", _native.ThreadPool(3), 0.002, 3 * 4096 - 1)


def test_what_there_is_not_is_refused(pool: _native.ThreadPool) -> None:
    with pytest.raises(ValueError, match="no peak of kind f64"):
        _native.measure_peak("f64", "auto", pool, 0.002)
    with pytest.raises(ValueError, match="no peak of kind int8"):
        _native.measure_peak("int8", "scalar", pool, 0.002)
    with pytest.raises(ValueError, match="sse2 is not available"):
        _native.peak_kinds("sse2")
