"""Packed matrices: what a tile holds is what the file's format means, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.backends.cuda import formats
from roseinfer.backends.cuda.device import open_device
from roseinfer.backends.cuda.formats import PackedMatrix, layout_of, layouts, pack
from roseinfer.backends.cuda.kernels.arithmetic import element_type
from roseinfer.backends.cuda.kernels.launch import launch
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import ConfigError
from roseinfer.quant import get_format

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Where a block's float16 scales end, and the most bits that a weight may take.
QUANTISED = {"q4_0": ([1], 4.5), "q4_1": ([1, 3], 5), "q8_0": ([1], 8.5), "q4_k": ([1, 3], 4.7), "q6_k": ([209], 6.7)}

each_quantised = pytest.mark.parametrize("name", QUANTISED)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@triton.jit
def _read_tile(
    out, a0, a1, a2, a3, first, k0, num_columns, TILE: tl.constexpr, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr
):
    rows = first + tl.arange(0, 4)
    values = TILE(a0, a1, a2, a3, rows, k0, num_columns, BLOCK_K, DTYPE).to(tl.float32)
    tl.store(out + tl.arange(0, 4)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :], values)


def read_tile(matrix: PackedMatrix, first_row: int, k0: int, block_k: int) -> torch.Tensor:
    """Four rows from `first_row` on, at columns k0 : k0 + block_k, as float32."""
    out = torch.full((4, block_k), torch.nan, device=matrix.arrays[0].device)
    args = (out, *matrix.pointers, first_row, k0, matrix.num_columns)
    launch(_read_tile, (1,), *args, TILE=matrix.tile, BLOCK_K=block_k, DTYPE=element_type(matrix.dtype))
    return out.cpu()


def read(matrix: PackedMatrix, block_k: int) -> torch.Tensor:
    """All of it; the number of rows is a multiple of four."""
    bands = [
        torch.cat([read_tile(matrix, row, k0, block_k) for k0 in range(0, matrix.num_columns, block_k)], dim=1)
        for row in range(0, matrix.num_rows, 4)
    ]
    values = torch.cat(bands)
    assert not values[:, matrix.num_columns :].any()
    return values[:, : matrix.num_columns]


def random_matrix(name: str, rows: int, columns: int, seed: int) -> Tensor:
    """Any bytes, but that scales lie below 2: products fit into float16."""
    weight_format = get_format(name)
    num_blocks = rows * columns // weight_format.block_size
    data = np.random.default_rng(seed).integers(0, 256, (num_blocks, weight_format.block_bytes), dtype=np.uint8)
    for high_byte in QUANTISED[name][0]:
        data[:, high_byte] &= 0xBF
    return Tensor("w", name, (rows, columns), data.reshape(-1))


def dense_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return Tensor.from_numpy("w", np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32))


def assert_bit_equal(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert torch.equal(a.view(torch.int32), b.view(torch.int32))


@each_quantised
@each_dtype
@settings(max_examples=3, deadline=None)
@given(num_blocks=st.integers(1, 3), block_k=st.sampled_from([64, 128, 256]), seed=st.integers(0, 2**32))
def test_tiles_hold_the_values_of_the_file(
    name: str, dtype: torch.dtype, num_blocks: int, block_k: int, seed: int
) -> None:
    matrix = random_matrix(name, 4, num_blocks * get_format(name).block_size, seed)
    packed = pack([matrix], dtype, open_device())
    assert packed.layout == name
    assert_bit_equal(read(packed, block_k), torch.from_numpy(matrix.numpy()).to(dtype).float())


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q5_k", "q5_0"])
@each_dtype
def test_other_formats_become_dense(name: str, dtype: torch.dtype) -> None:
    columns = 77 if name in ("f32", "f16", "bf16") else 256
    values = np.random.default_rng(1).standard_normal(4 * columns).astype(np.float32)
    matrix = Tensor("w", name, (4, columns), get_format(name).quantize(values))
    packed = pack([matrix], dtype, open_device())
    assert packed.layout == "dense"
    assert packed.arrays[0].dtype == dtype
    assert_bit_equal(read(packed, 64), torch.from_numpy(matrix.numpy().copy()).to(dtype).float())


@each_quantised
def test_packing_costs_few_bits(name: str) -> None:
    packed = pack([random_matrix(name, 4, 512, 0)], torch.float32, "cpu")
    assert sum(array.nbytes for array in packed.arrays) * 8 / (4 * 512) <= QUANTISED[name][1]


@pytest.mark.parametrize("name", [*QUANTISED, "f32"])
def test_rows_of_several_tensors_lie_one_behind_the_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        dense_matrix(rows, 256, rows) if name == "f32" else random_matrix(name, rows, 256, rows) for rows in (3, 1, 8)
    ]
    monkeypatch.setattr(formats, "_CHUNK_VALUES", 2 * 256)
    packed = pack(parts, torch.float32, open_device())
    assert (packed.num_rows, packed.num_columns) == (12, 256)
    assert_bit_equal(read(packed, 128), torch.from_numpy(np.concatenate([part.numpy() for part in parts])))


def test_fp8_is_the_nearest_of_a_row_s_values() -> None:
    matrix = dense_matrix(8, 100)
    matrix.numpy()[5] *= 1e4
    values = torch.tensor(matrix.numpy())
    values[3] = 0
    packed = pack([Tensor.from_numpy("w", values.numpy())], torch.float32, open_device(), "fp8")
    assert packed.layout == "fp8"
    scales = values.abs().amax(dim=1, keepdim=True) / 448
    q = (values / scales.clamp(min=1e-30)).to(torch.float8_e4m3fn).float()
    got = read(packed, 64)
    assert_bit_equal(got, q * scales)
    assert (
        (got - values).abs() <= values.abs() / 16 + scales * 2**-10
    ).all()  # half a step: of normal values, of others


def test_every_code_of_fp8() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F].repeat(4, 1)
    arrays = (codes.to(open_device()), torch.ones(4, 1, device=open_device()))
    tile = pack([dense_matrix(4, 1)], torch.float32, "cpu", "fp8").tile
    matrix = PackedMatrix("fp8", 4, codes.shape[1], torch.float32, arrays, tile)
    assert_bit_equal(read(matrix, 128), codes.view(torch.float8_e4m3fn).float())


def test_layouts_are_chosen_by_format() -> None:
    assert set(QUANTISED) | {"dense", "fp8"} == set(layouts())
    assert layout_of(dense_matrix(1, 1), torch.float16) == "dense"
    assert layout_of(dense_matrix(1, 1), torch.float16, "fp8") == "fp8"
    assert layout_of(random_matrix("q4_k", 1, 256, 0), torch.float16, "fp8") == "q4_k"
    with pytest.raises(ConfigError, match="int3"):
        layout_of(dense_matrix(1, 1), torch.float16, "int3")
