"""Packing and linears of every format and instruction set against the formats' NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest

from roseinfer.backends.native import _native
from roseinfer.quant import format_names, get_format

ISAS = _native.available_isas()
QUANTISED = [name for name in format_names() if name not in ("f32", "f16", "bf16")]
ROWS, COLUMNS = 41, 512  # neither a multiple of the tile's sixteen rows, nor a single super-block


def make_weight(name: str, rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random matrix in the format's bytes, and what these mean: float32 [rows, columns]."""
    values = np.random.default_rng(seed).normal(0, 0.05, rows * columns).astype(np.float32)
    data = get_format(name).quantize(values)
    return data, get_format(name).dequantize(data).reshape(rows, columns)


def make_input(rows: int, columns: int = COLUMNS, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, columns)).astype(np.float32)


def pack(name: str, data: np.ndarray, rows: int = ROWS, columns: int = COLUMNS):
    return _native.pack(name, rows, columns, data, _native.ThreadPool(1))


def run(isa: str, weight, x: np.ndarray, act: str, threads: int = 1) -> np.ndarray:
    return _native.linear(isa, weight, x, act, _native.ThreadPool(threads))


def quantised_input(x: np.ndarray) -> np.ndarray:
    """What an int8 linear sees of its input: 32 values share a scale of max / 127."""
    groups = x.reshape(len(x), -1, 32)
    highest = np.abs(groups).max(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        inverse = np.where(highest > 0, np.float32(127) / highest, np.float32(0))
    steps = np.rint(groups * inverse)
    return (steps * (highest / np.float32(127))).reshape(x.shape).astype(np.float64)


@pytest.mark.parametrize("name", format_names())
def test_packed_rows_mean_what_the_format_says(name):
    data, values = make_weight(name)
    np.testing.assert_array_equal(pack(name, data).unpack(), values)


@pytest.mark.parametrize("name", QUANTISED)
def test_random_blocks_survive_packing(name):
    """Every bit pattern of the quantised part counts, not only those a quantiser writes."""
    form = get_format(name)
    rng = np.random.default_rng(7)
    num_blocks = 33 * 512 // form.block_size
    data = rng.integers(0, 256, (num_blocks, form.block_bytes), dtype=np.uint8)
    _, plain = make_weight(name, 33)
    reference = form.quantize(plain.reshape(-1)).reshape(num_blocks, form.block_bytes)
    for start in scale_bytes(name):  # finite scales, so that bit equality means something
        data[:, start : start + 2] = reference[:, start : start + 2]
    packed = pack(name, data.reshape(-1), 33)
    np.testing.assert_array_equal(packed.unpack(), form.dequantize(data.reshape(-1)).reshape(33, 512))


def scale_bytes(name: str) -> list[int]:
    """Where a block keeps its float16 numbers."""
    places = {"q4_1": [0, 2], "q5_1": [0, 2], "q2_k": [80, 82], "q3_k": [108], "q6_k": [208]}
    return places.get(name, [0, 2] if name in ("q4_k", "q5_k") else [0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", format_names())
def test_float_activations(isa, name):
    data, values = make_weight(name)
    x = make_input(5)
    expected = x.astype(np.float64) @ values.T.astype(np.float64)
    np.testing.assert_allclose(run(isa, pack(name, data), x, "f32"), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", QUANTISED)
def test_int8_activations(isa, name):
    data, values = make_weight(name)
    x = make_input(5)
    x[1, 64:96] = 0.0  # a group without a scale
    expected = quantised_input(x) @ values.T.astype(np.float64)
    np.testing.assert_allclose(run(isa, pack(name, data), x, "q8"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not _native.has_bf16_dot("auto"), reason="this CPU has no bf16 dot product")
@pytest.mark.parametrize("columns", [512, 511])
def test_bf16_activations(columns):
    data, values = make_weight("bf16", ROWS, columns)
    x = make_input(19, columns)
    rounded = get_format("bf16").dequantize(get_format("bf16").quantize(x.reshape(-1))).reshape(x.shape)
    expected = rounded.astype(np.float64) @ values.T.astype(np.float64)
    got = run("auto", pack("bf16", data, ROWS, columns), x, "bf16")
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def kernel_cases() -> list[tuple[str, str, str]]:
    cases = [(isa, name, "f32") for isa in ISAS for name in format_names()]
    cases += [(isa, name, "q8") for isa in ISAS for name in QUANTISED]
    return cases + [(isa, "bf16", "bf16") for isa in ISAS if _native.has_bf16_dot(isa)]


@pytest.mark.parametrize(("isa", "name", "act"), kernel_cases())
def test_rows_are_independent(isa, name, act):
    """A row's result is the same bits alone, among 2 to 67 others, and on one or two threads."""
    data, _ = make_weight(name)
    weight, x = pack(name, data), make_input(67)
    whole = run(isa, weight, x, act)
    for count in (1, 2, 3, 7, 16, 33):
        np.testing.assert_array_equal(run(isa, weight, x[:count], act), whole[:count])
    np.testing.assert_array_equal(run(isa, weight, x[40:41], act), whole[40:41])
    np.testing.assert_array_equal(run(isa, weight, x, act, threads=2), whole)


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_stays_in_its_row(isa):
    data, _ = make_weight("q4_1")
    x = make_input(3)
    clean = run(isa, pack("q4_1", data), x, "q8")
    for bad in (np.nan, np.inf):
        x[1, 100] = bad
        got = run(isa, pack("q4_1", data), x, "q8")
        assert np.isnan(got[1]).all()
        np.testing.assert_array_equal(got[[0, 2]], clean[[0, 2]])


def test_sizes_are_checked():
    data, _ = make_weight("q8_0")
    with pytest.raises(ValueError, match="another size"):
        pack("q8_0", data[:-1])
    with pytest.raises(ValueError, match="whole blocks"):
        _native.pack("q8_0", 1, 33, data, _native.ThreadPool(1))
    with pytest.raises(ValueError, match="no kernels"):
        _native.pack("q9_9", 1, 32, data, _native.ThreadPool(1))
    with pytest.raises(ValueError, match="another width"):
        run("auto", pack("q8_0", data), make_input(1, 64), "q8")


def test_isa_levels():
    assert ISAS[0] == "scalar"
    assert _native.isa("auto") == ISAS[-1]
    with pytest.raises(ValueError, match="avx1024"):
        _native.isa("avx1024")
