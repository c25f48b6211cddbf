"""Every weight format against the gguf package, bit for bit, and the quantisers against error bounds."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.errors import UnsupportedModelError
from roseinfer.quant import Format, format_names, get_format

FORMATS = [get_format(name) for name in format_names()]
REFERENCE_QUANTISERS = ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]  # the gguf package has no others
# Where the float16 scales of a block lie. A K-quant's root mean square error on normal values, with some slack.
HALVES = {
    "f16": [0],
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q8_0": [0],
    "q2_k": [80, 82],
    "q3_k": [108],
    "q4_k": [0, 2],
    "q5_k": [0, 2],
    "q6_k": [208],
}
NORMAL_ERROR = {"q2_k": 0.28, "q3_k": 0.15, "q4_k": 0.075, "q5_k": 0.038, "q6_k": 0.0185}

each_format = pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.name)


def ggml_type(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def reference(name: str, data: np.ndarray) -> np.ndarray:
    block_bytes = get_format(name).block_bytes
    return gguf.quants.dequantize(data.reshape(-1, block_bytes), ggml_type(name)).reshape(-1)


def finite_blocks(name: str, data: np.ndarray) -> np.ndarray:
    """Takes a bit off every exponent that means inf or NaN."""
    blocks = data.reshape(-1, get_format(name).block_bytes).copy()
    for offset in HALVES.get(name, []):
        high = blocks[:, offset + 1]
        high[(high & 0x7C) == 0x7C] &= 0xFB
    if name in ("f32", "bf16"):
        high, low = blocks[:, -1], blocks[:, -2]
        low[(high & 0x7F) == 0x7F] &= 0x7F
    return blocks.reshape(-1)


def assert_bit_equal(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_all_formats_are_found() -> None:
    assert set(format_names()) == {*REFERENCE_QUANTISERS, *NORMAL_ERROR}


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"iq2_xxs.*q4_k"):
        get_format("iq2_xxs")


@each_format
def test_block_sizes_are_ggmls(weight_format: Format) -> None:
    assert gguf.GGML_QUANT_SIZES[ggml_type(weight_format.name)] == (weight_format.block_size, weight_format.block_bytes)


@each_format
def test_dequantises_random_blocks_as_the_reference(weight_format: Format) -> None:
    data = np.random.default_rng(7).integers(0, 256, 3000 * weight_format.block_bytes, dtype=np.uint8)
    data = finite_blocks(weight_format.name, data)
    assert_bit_equal(weight_format.dequantize(data), reference(weight_format.name, data))


@each_format
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_dequantises_any_block_as_the_reference(weight_format: Format, data: st.DataObject) -> None:
    size = weight_format.block_bytes
    raw = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    block = finite_blocks(weight_format.name, raw)
    assert_bit_equal(weight_format.dequantize(block), reference(weight_format.name, block))


@each_format
def test_dequantises_real_values_as_the_reference(weight_format: Format) -> None:
    data = weight_format.quantize(np.random.default_rng(1).standard_normal(256 * 200).astype(np.float32))
    assert_bit_equal(weight_format.dequantize(data), reference(weight_format.name, data))


@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_dequantises_real_files_as_the_reference(model: str, request: pytest.FixtureRequest) -> None:
    with open_checkpoint(request.getfixturevalue(model)) as checkpoint:
        for tensor in checkpoint.tensors.values():
            data = tensor.data[: get_format(tensor.format).block_bytes * 4096]
            assert_bit_equal(get_format(tensor.format).dequantize(data), reference(tensor.format, data))


@each_format
def test_blocks_are_independent(weight_format: Format) -> None:
    data = weight_format.quantize(np.random.default_rng(2).standard_normal(512).astype(np.float32))
    blocks = data.reshape(-1, weight_format.block_bytes)
    one_by_one = np.concatenate([weight_format.dequantize(np.ascontiguousarray(block)) for block in blocks])
    assert_bit_equal(weight_format.dequantize(data), one_by_one)


@each_format
def test_takes_unaligned_read_only_views(weight_format: Format) -> None:
    data = weight_format.quantize(np.linspace(-1, 1, 512, dtype=np.float32))
    shifted = np.frombuffer(b"\0" + data.tobytes(), np.uint8)[1:]
    assert_bit_equal(weight_format.dequantize(shifted), weight_format.dequantize(data))


@pytest.mark.parametrize("name", REFERENCE_QUANTISERS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_quantises_as_the_reference(name: str, scale: float) -> None:
    values = (np.random.default_rng(3).standard_normal((64, 256)) * scale).astype(np.float32)
    values[0] = 0
    expected = gguf.quants.quantize(values, ggml_type(name)).reshape(-1).view(np.uint8)
    np.testing.assert_array_equal(get_format(name).quantize(values.reshape(-1)), expected)


@pytest.mark.parametrize("name", NORMAL_ERROR)
def test_k_quantisers_keep_the_error_small(name: str) -> None:
    values = np.random.default_rng(4).standard_normal(256 * 500).astype(np.float32)
    weight_format = get_format(name)
    error = weight_format.dequantize(weight_format.quantize(values)) - values
    assert np.sqrt(np.mean(error**2)) < NORMAL_ERROR[name]


@pytest.mark.parametrize("name", NORMAL_ERROR)
def test_k_quantisers_keep_what_they_can_represent(name: str) -> None:
    """Quantising the values of a block again moves them by far less than a step."""
    weight_format = get_format(name)
    values = np.random.default_rng(5).standard_normal(256 * 200).astype(np.float32)
    once = weight_format.dequantize(weight_format.quantize(values))
    twice = weight_format.dequantize(weight_format.quantize(once))
    assert np.sqrt(np.mean((twice - once) ** 2)) < 0.25 * np.sqrt(np.mean((once - values) ** 2))


@each_format
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, -1e-42])
def test_quantises_constants(weight_format: Format, value: float) -> None:
    values = np.full(512, value, np.float32)
    result = weight_format.dequantize(weight_format.quantize(values))
    np.testing.assert_allclose(result, values, rtol=0.05, atol=1e-7)


@each_format
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(-1.5, 3), shift=st.floats(-3, 3))
def test_quantised_values_stay_within_a_step(weight_format: Format, seed: int, spread: float, shift: float) -> None:
    noise = np.random.default_rng(seed).standard_normal(256)
    values = ((noise + shift) * 10**spread).astype(np.float32)
    error = np.abs(weight_format.dequantize(weight_format.quantize(values)) - values)
    num_levels = 2 ** min(int(weight_format.bits_per_weight), 8)
    assert error.max() <= 2.1 * np.abs(values).max() / (num_levels - 1) + 1e-7


def test_bf16_rounds_to_even_and_keeps_nans() -> None:
    values = np.array([1.00390625, 1.01171875, np.inf, -np.inf, np.nan], np.float32)
    result = get_format("bf16").dequantize(get_format("bf16").quantize(values))
    np.testing.assert_array_equal(result, np.array([1.0, 1.015625, np.inf, -np.inf, np.nan], np.float32))
