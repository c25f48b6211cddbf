"""Rows of tables in every layout, against the values that the file means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from roseinfer.backends.cuda.device import open_device
from roseinfer.backends.cuda.formats import pack
from roseinfer.backends.cuda.kernels.embedding import embedding
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.quant import get_format

FORMATS = ["f32", "f16", "bf16", "q4_0", "q4_1", "q8_0", "q4_k", "q6_k"]


def make_table(name: str, rows: int, columns: int) -> Tensor:
    values = np.random.default_rng(0).standard_normal(rows * columns).astype(np.float32)
    return Tensor("table", name, (rows, columns), get_format(name).quantize(values))


def look_up(table: Tensor, ids: list[int], dtype: torch.dtype, scale: float, out_dtype: torch.dtype) -> torch.Tensor:
    """Into the middle of a wider buffer, whose rest must stay as it is."""
    device = open_device()
    width = table.shape[1]
    memory = torch.full((len(ids), width + 7), 5.0, dtype=out_dtype, device=device)
    packed = pack([table], dtype, device)
    embedding(torch.tensor(ids, dtype=torch.int32, device=device), packed, memory[:, 3 : 3 + width], scale)
    assert bool((memory[:, :3] == 5).all())
    assert bool((memory[:, 3 + width :] == 5).all())
    return memory[:, 3 : 3 + width].cpu()


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_those_of_the_file(name: str) -> None:
    table = make_table(name, 9, 512)
    ids = [8, 0, 3, 3, *range(9)] * 3  # more than a program takes in the interpreter
    assert torch.equal(look_up(table, ids, torch.float32, 1.0, torch.float32), torch.tensor(table.numpy())[ids])


def test_quantised_rows_keep_their_float32_values_whatever_products_are_computed_in() -> None:
    table = make_table("q6_k", 4, 256)
    assert torch.equal(look_up(table, [2], torch.bfloat16, 1.0, torch.float32)[0], torch.tensor(table.numpy()[2]))


@pytest.mark.parametrize("width", [1, 77, 301])
def test_any_width_scaled_and_rounded(width: int) -> None:
    table = make_table("f32", 5, width)
    expected = (torch.tensor(table.numpy())[[4, 1]] * torch.tensor(3.7)).to(torch.bfloat16)
    assert torch.equal(look_up(table, [4, 1], torch.float32, 3.7, torch.bfloat16), expected)


def test_tokens_that_do_not_exist_read_row_0() -> None:
    table = make_table("f32", 5, 16)
    assert torch.equal(
        look_up(table, [-1, 2, -7], torch.float32, 1.0, torch.float32), torch.tensor(table.numpy())[[0, 2, 0]]
    )
