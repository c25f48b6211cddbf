"""Linears in every layout and compute dtype, against float64 products of the weights as they were rounded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.backends.cuda.device import open_device
from roseinfer.backends.cuda.formats import PackedMatrix, pack
from roseinfer.backends.cuda.kernels.embedding import embedding
from roseinfer.backends.cuda.kernels.launch import Launch, recording
from roseinfer.backends.cuda.kernels.linear import (
    WANTED_PROGRAMS,
    linear,
    linear_workspace_floats,
    num_segments,
    segment_columns,
)
from roseinfer.backends.cuda.kernels.workspace import Workspace
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.quant import get_format

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Each with a width that has two segments and, where the format has such, a tail behind whole tiles.
WIDTHS = {"f32": 301, "fp8": 301, "q4_0": 288, "q4_1": 288, "q8_0": 288, "q4_k": 512, "q6_k": 512}
ACTIVATIONS = {
    "": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def make_matrix(name: str, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> PackedMatrix:
    """Of normal values; `name` is a format, or fp8."""
    values = np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)
    weight_format = get_format("f32" if name == "fp8" else name)
    tensor = Tensor("w", weight_format.name, (rows, columns), weight_format.quantize(values.reshape(-1)))
    return pack([tensor], dtype, open_device(), "fp8" if name == "fp8" else "auto")


def rounded_weights(matrix: PackedMatrix) -> torch.Tensor:
    """What is multiplied with, in float64."""
    ids = torch.arange(matrix.num_rows, dtype=torch.int32, device=matrix.arrays[0].device)
    out = torch.empty(matrix.num_rows, matrix.num_columns, device=ids.device)
    embedding(ids, matrix, out, 1.0)
    return out.to(matrix.dtype).double()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(open_device())


def run(
    x: torch.Tensor,
    matrix: PackedMatrix,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str = "",
    gated: bool = False,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The linear's output. Checks that it stays within its memory and leaves the counters as they were."""
    width = matrix.num_rows // (1 + gated)
    memory = torch.full((x.shape[0], width + 5), 7.0, dtype=out_dtype, device=x.device)
    out = memory[:, 2 : 2 + width]
    floats = linear_workspace_floats(matrix, x.shape[0])
    workspace = Workspace(x.device, floats + 100, WANTED_PROGRAMS)
    workspace.partials.fill_(math.nan)
    linear(x, matrix, out, bias=bias, residual=residual, activation=activation, gated=gated, workspace=workspace)
    assert not workspace.counters.any()
    assert workspace.partials[floats:].isnan().all()
    assert bool((memory[:, :2] == 7).all())
    assert bool((memory[:, 2 + width :] == 7).all())
    return out


def assert_close(got: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> None:
    """As a sum of products in float32 may be off: a few units in the last place of the sum of their magnitudes."""
    x = x.double()
    bound = x.abs() @ weights.abs().T * 2**-22
    assert ((got.double() - x @ weights.T).abs() <= bound).all()


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_and_their_rows_alone(name: str, dtype: torch.dtype) -> None:
    matrix = make_matrix(name, 71, WIDTHS[name], dtype)
    assert num_segments(71, WIDTHS[name]) >= 2
    x = normal(70, WIDTHS[name])
    whole = run(x, matrix)  # by one program for all segments; fewer rows by one for each
    assert_close(whole, x.to(dtype), rounded_weights(matrix))
    for first, last in ((5, 6), (66, 69), (20, 37)):
        assert torch.equal(run(x[first:last], matrix), whole[first:last])


def test_inputs_may_have_any_dtype_and_stride() -> None:
    matrix = make_matrix("f32", 20, 40, torch.bfloat16)
    x = normal(3, 50)
    expected = run(x[:, 4:44].contiguous(), matrix)
    assert torch.equal(run(x[:, 4:44], matrix), expected)
    assert torch.equal(run(x[:, 4:44].to(torch.bfloat16), matrix), expected)
    half = x.to(torch.float16)[:, 4:44]
    assert torch.equal(run(half, matrix), run(half.float(), matrix))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("gated", "num_tokens"), [(False, 5), (True, 5), (True, 40)])
def test_epilogues(activation: str, gated: bool, num_tokens: int) -> None:
    matrix = make_matrix("f32", 2 * 37, 300)
    width = 37 if gated else 2 * 37
    x, bias, residual = normal(num_tokens, 300, seed=1) / 16, normal(2 * 37, seed=2), normal(num_tokens, width, seed=3)
    y = x.double() @ rounded_weights(matrix).T + bias.double()
    function = ACTIVATIONS[activation]
    expected = function(y[:, :37]) * y[:, 37:] if gated else function(y)
    got = run(x, matrix, bias=bias, activation=activation, gated=gated)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    added = run(x, matrix, bias=bias, activation=activation, gated=gated, residual=residual)
    assert torch.equal(added, got + residual)


def test_a_residual_may_be_the_output() -> None:
    matrix = make_matrix("q8_0", 64, 512)
    x, residual = normal(6, 512), normal(6, 64, seed=1)
    expected = run(x, matrix, residual=residual)
    workspace = Workspace(x.device, linear_workspace_floats(matrix, 6), WANTED_PROGRAMS)
    linear(x, matrix, residual, bias=None, residual=residual, activation="", gated=False, workspace=workspace)
    assert torch.equal(residual, expected)


def test_outputs_are_rounded_to_nearest() -> None:
    matrix, x = make_matrix("f32", 33, 70), normal(9, 70)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(run(x, matrix, out_dtype=dtype), run(x, matrix).to(dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_large_values(activation: str) -> None:
    identity = pack([Tensor.from_numpy("w", np.eye(16, dtype=np.float32))], torch.float32, open_device())
    magnitudes = torch.cat([torch.linspace(0, 6, 28), torch.tensor([30.0, 90.0, 1e3, 1e5])])
    x = torch.stack([magnitudes, -magnitudes], dim=1).reshape(4, 16).to(open_device())
    expected = ACTIVATIONS[activation](x.double())
    torch.testing.assert_close(run(x, identity, activation=activation).double(), expected, rtol=2e-6, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(
    num_rows=st.integers(1, 140),
    num_columns=st.integers(1, 600),
    num_tokens=st.integers(1, 36),
    gated=st.booleans(),
    data=st.data(),
)
def test_any_shape(num_rows: int, num_columns: int, num_tokens: int, gated: bool, data: st.DataObject) -> None:
    matrix = make_matrix("f32", num_rows * (1 + gated), num_columns, torch.bfloat16)
    x = normal(num_tokens, num_columns).to(torch.bfloat16)
    got = run(x, matrix, gated=gated)
    row = data.draw(st.integers(0, num_tokens - 1))
    assert torch.equal(run(x[row : row + 1], matrix, gated=gated)[0], got[row])
    if not gated:
        assert_close(got, x, rounded_weights(matrix))


def record(matrix: PackedMatrix, num_tokens: int, gated: bool) -> Launch:
    """What would be launched on a GPU."""
    launches: list[Launch] = []
    x = torch.empty(num_tokens, matrix.num_columns, device="meta")
    out = torch.empty(num_tokens, matrix.num_rows // (1 + gated), device="meta")
    with recording(launches.append):
        linear(
            x,
            matrix,
            out,
            bias=None,
            residual=None,
            activation="",
            gated=gated,
            workspace=Workspace("meta", 1, 1),
        )
    return launches[0]


def meta_matrix(layout: str, num_rows: int, num_columns: int, dtype: torch.dtype) -> PackedMatrix:
    values = torch.empty(num_rows, num_columns, dtype=dtype, device="meta")
    return PackedMatrix(layout, num_rows, num_columns, dtype, (values,), None)


@given(
    features=st.integers(1, 40_000),
    num_columns=st.integers(1, 30_000),
    num_tokens=st.integers(1, 600),
    gated=st.booleans(),
    layout=st.sampled_from(["dense", "q4_k"]),
    dtype=st.sampled_from(DTYPES),
)
def test_launches_on_a_gpu(
    features: int, num_columns: int, num_tokens: int, gated: bool, layout: str, dtype: torch.dtype
) -> None:
    """Sums are cut in the same places for every number of tokens, and partial results fit into the workspace."""
    matrix = meta_matrix(layout, features * (1 + gated), num_columns, dtype)
    launched = record(matrix, num_tokens, gated)
    constants = launched.constants
    assert constants["SEGMENT"] == segment_columns(matrix.num_rows, num_columns)
    assert constants["SEGMENT"] % constants["BLOCK_K"] == 0
    assert (constants["NUM_SEGMENTS"] - 1) * constants["SEGMENT"] < num_columns
    assert num_columns <= constants["NUM_SEGMENTS"] * constants["SEGMENT"]
    assert launched.grid[0] * constants["BLOCK_F"] * constants["BLOCK_T"] >= features * num_tokens
    assert launched.grid[1] == (constants["NUM_SEGMENTS"] if constants["IS_SPLIT"] else 1)
    if constants["IS_SPLIT"]:
        area = constants["BLOCK_F"] * constants["BLOCK_T"] * (1 + gated)
        assert launched.grid[0] * launched.grid[1] * area <= linear_workspace_floats(matrix, num_tokens)
        assert launched.grid[0] <= WANTED_PROGRAMS


@pytest.mark.parametrize(
    ("num_rows", "num_columns"), [(2048, 2048), (1024, 4096), (2048, 8192), (4096, 4096), (4096, 14336)]
)
def test_one_token_occupies_a_large_gpu(num_rows: int, num_columns: int) -> None:
    launched = record(meta_matrix("dense", num_rows, num_columns, torch.bfloat16), 1, gated=False)
    assert launched.grid[0] * launched.grid[1] >= 256
