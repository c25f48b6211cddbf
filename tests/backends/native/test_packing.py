"""Where packed weights lie: side by side, each its own, for as long as it is used."""

from __future__ import annotations

import gc
import resource

import numpy as np
import numpy.typing as npt
import pytest

import roseinfer.backends.native._native as _native
from roseinfer.quant import format_names, get_format

POOL = _native.ThreadPool(1)


def blocks(name: str, rows: int, columns: int, seed: int) -> npt.NDArray[np.uint8]:
    form = get_format(name)
    values = np.random.default_rng(seed).standard_normal(rows * columns).astype(np.float32)
    return form.quantize(values)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 48])
@pytest.mark.parametrize("name", format_names())
def test_any_number_of_rows(name: str, rows: int) -> None:
    data = blocks(name, rows, 512, rows)
    packed = _native.pack(name, rows, 512, data, POOL)
    np.testing.assert_array_equal(packed.unpack(), get_format(name).dequantize(data).reshape(rows, 512))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("columns", [1, 2, 31, 33])
def test_floats_of_any_width(name: str, columns: int) -> None:
    data = blocks(name, 17, columns, columns)
    packed = _native.pack(name, 17, columns, data, POOL)
    np.testing.assert_array_equal(packed.unpack(), get_format(name).dequantize(data).reshape(17, columns))


def test_a_weight_outlives_its_neighbours() -> None:
    data = [blocks("q4_1", 33, 64, seed) for seed in range(200)]
    packed = [_native.pack("q4_1", 33, 64, each, POOL) for each in data]
    kept = dict(list(enumerate(packed))[::7])
    del packed
    gc.collect()
    more = [_native.pack("q8_0", 64, 256, blocks("q8_0", 64, 256, seed), POOL) for seed in range(50)]
    for i, weight in kept.items():
        np.testing.assert_array_equal(weight.unpack(), get_format("q4_1").dequantize(data[i]).reshape(33, 64))
    assert len(more) == 50


def test_memory_goes_back_with_the_last_weight() -> None:
    data = np.zeros((4096, 1024, 4), np.uint8).reshape(-1)  # 16 MiB, packed ten times
    before = resident_bytes()
    packed = [_native.pack("f32", 4096, 1024, data, POOL) for _ in range(10)]
    assert resident_bytes() - before > 150 << 20
    packed.clear()
    gc.collect()
    assert resident_bytes() - before < 40 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
