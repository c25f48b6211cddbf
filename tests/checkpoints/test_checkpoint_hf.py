"""The reader of Hugging Face directories: agreement with the safetensors library, and what is refused."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from roseinfer.checkpoints import hf, open_checkpoint
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from tests.mutants import safetensors_bytes
from tests.writers import write_hf, write_safetensors, write_safetensors_parts

CONFIG = {"model_type": "llama", "hidden_size": 8, "rope_theta": 1e4, "limits": [0.0, float("inf")]}
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(folder: Path, header: Mapping[str, Any], num_bytes: int) -> Path:
    write_safetensors_parts(write_hf(folder, CONFIG, {}) / hf.WEIGHTS, header, bytes(num_bytes))
    return folder


def refuse(path: Path, match: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=match) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "w": ("f32", rng.standard_normal((3, 5)).astype(np.float32)),
        "half": ("f16", rng.standard_normal((2, 3, 4)).astype(np.float32)),
        "brain": ("bf16", rng.standard_normal(7).astype(np.float32)),
        "scalar": ("f32", np.float32(3).reshape(())),
    }


def test_reads_what_the_library_wrote(folder: Path) -> None:
    write_hf(folder, CONFIG, {})
    tensors = {name: torch.randn(3, 5, dtype=getattr(torch, name)) for name in ("float32", "float16", "bfloat16")}
    safetensors.torch.save_file(tensors, folder / hf.WEIGHTS, {"format": "pt"})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].numpy(), tensor.float().numpy())


def test_the_library_reads_what_the_tests_write(folder: Path, values: dict[str, Any]) -> None:
    loaded = safetensors.torch.load_file(write_hf(folder, CONFIG, values) / hf.WEIGHTS)
    checkpoint = open_checkpoint(folder)
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].numpy(), tensor.float().numpy())


def test_configurations(folder: Path, values: dict[str, Any]) -> None:
    checkpoint = open_checkpoint(write_hf(folder, CONFIG, values, generation_config={"eos_token_id": [1, 2]}))
    assert (checkpoint.container, checkpoint.architecture) == ("hf", "llama")
    assert checkpoint.config == CONFIG
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}


def test_shards(folder: Path, values: dict[str, Any]) -> None:
    one = open_checkpoint(write_hf(folder / "one", CONFIG, values))
    three = open_checkpoint(write_hf(folder / "three", CONFIG, values, num_shards=3))
    assert three.tensors.keys() == one.tensors.keys()
    for name, tensor in one.tensors.items():
        assert (three.tensors[name].format, three.tensors[name].shape) == (tensor.format, tensor.shape)
        np.testing.assert_array_equal(three.tensors[name].data, tensor.data)


def test_a_path_to_a_weights_file(folder: Path, values: dict[str, Any]) -> None:
    write_hf(folder / "one", CONFIG, values)
    write_hf(folder / "two", CONFIG, values, num_shards=2)
    write_safetensors(folder / "two" / "other.safetensors", {"x": values["w"]})
    assert open_checkpoint(folder / "one" / hf.WEIGHTS).tensors.keys() == values.keys()
    assert open_checkpoint(folder / "two" / "model-00002-of-00002.safetensors").tensors.keys() == values.keys()
    assert open_checkpoint(folder / "two" / "other.safetensors").tensors.keys() == {"x"}


def test_a_single_file_of_another_name(folder: Path, values: dict[str, Any]) -> None:
    (write_hf(folder, CONFIG, values) / hf.WEIGHTS).rename(folder / "weights.safetensors")
    assert open_checkpoint(folder).tensors.keys() == values.keys()
    write_safetensors(folder / "more.safetensors", values)
    refuse(folder, "2 .*safetensors files")


def test_links_as_in_the_hub_cache(folder: Path, values: dict[str, Any]) -> None:
    write_hf(folder / "blobs", CONFIG, values)
    (folder / "snapshot").mkdir()
    for name in ("config.json", hf.WEIGHTS):
        (folder / "snapshot" / name).symlink_to(Path("..") / "blobs" / name)
    assert open_checkpoint(folder / "snapshot").tensors.keys() == values.keys()


def test_integers_are_kept_but_cannot_be_used_as_weights(folder: Path) -> None:
    write_hf(folder, CONFIG, {})
    safetensors.numpy.save_file({"position_ids": np.arange(4), "mask": np.ones((2, 2), bool)}, folder / hf.WEIGHTS)
    tensors = open_checkpoint(folder).tensors
    assert {name: tensor.format for name, tensor in tensors.items()} == {"position_ids": "i64", "mask": "bool"}
    with pytest.raises(UnsupportedModelError, match="i64"):
        tensors["position_ids"].numpy()


def test_nothing_is_copied(folder: Path) -> None:
    write_hf(folder, CONFIG, {"w": np.zeros((1024, 4096), np.float32)})
    tracemalloc.start()
    tensor = open_checkpoint(folder).tensors["w"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert not tensor.data.flags.owndata


# -- directories and JSON ---------------------------------------------------------------------------------------


def test_missing_parts(folder: Path) -> None:
    refuse(folder, "No such file")
    folder.mkdir()
    refuse(folder, r"no config\.json")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    refuse(folder, r"0 .*safetensors files")


def test_configs_that_cannot_be_used(folder: Path, values: dict[str, Any]) -> None:
    write_hf(folder, {}, values)
    refuse(folder, r"config\.json: 'model_type'")
    write_hf(folder, {"model_type": 3}, values)
    refuse(folder, r"config\.json: 'model_type'")
    write_hf(folder, {"model_type": "llama", "quantization_config": {"bits": 4}}, values)
    refuse(folder, "quantization_config", UnsupportedModelError)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "deeper"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "JSON"),
        (b" " * (hf.MAX_CONFIG_BYTES + 1), "larger than"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else value,
)
def test_hostile_json(folder: Path, values: dict[str, Any], text: bytes, match: str) -> None:
    write_hf(folder, CONFIG, values)
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_bytes(text)
        refuse(folder, f"{name}: .*{match}")
        (folder / name).write_text(json.dumps(CONFIG))


def test_files_that_are_none(folder: Path, values: dict[str, Any]) -> None:
    write_hf(folder, CONFIG, values)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    refuse(folder, r"config\.json: not a regular file")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refuse(folder, r"config\.json: not a regular file")


@pytest.mark.parametrize(
    "file_name",
    [
        *("../x.safetensors", "/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "a\0.safetensors"),
        *("\ud800.safetensors", "config.json", "", 3, None, [], {}),
    ],
)
def test_an_index_that_leads_out_of_the_directory(folder: Path, values: dict[str, Any], file_name: object) -> None:
    write_hf(folder, CONFIG, values, num_shards=2)
    write_safetensors(folder.parent / "x.safetensors", values)
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": {"w": file_name}}))
    refuse(folder, f"{hf.INDEX}.*'w'.*beside")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": None}])
def test_an_index_without_a_map(folder: Path, values: dict[str, Any], index: dict[str, Any]) -> None:
    write_hf(folder, CONFIG, values, num_shards=2)
    (folder / hf.INDEX).write_text(json.dumps(index))
    refuse(folder, f"{hf.INDEX}.*weight_map")


def test_shards_that_are_missing_or_lack_a_tensor(folder: Path, values: dict[str, Any]) -> None:
    write_hf(folder, CONFIG, values, num_shards=2)
    first = folder / "model-00001-of-00002.safetensors"
    write_safetensors(first, {"other": values["w"]})
    refuse(folder, f"{hf.INDEX}: tensor 'w' is not in {first.name}")
    first.unlink()
    refuse(folder, f"{first.name}: No such file")


# -- safetensors headers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 9])
def test_files_that_are_too_short(folder: Path, num_bytes: int) -> None:
    (write_hf(folder, CONFIG, {}) / hf.WEIGHTS).write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0, 123])[:num_bytes])
    refuse(folder, "empty" if num_bytes == 0 else "header")


@pytest.mark.parametrize("length", [1000, 2**31, 2**63, 2**64 - 1])
def test_header_lengths_beyond_the_file(folder: Path, length: int) -> None:
    write_hf(folder, CONFIG, {})
    (folder / hf.WEIGHTS).write_bytes(length.to_bytes(8, "little") + b"{}")
    refuse(folder, "header")


def test_a_header_above_the_cap(folder: Path) -> None:
    write_hf(folder, CONFIG, {})
    (folder / hf.WEIGHTS).write_bytes(safetensors_bytes(b" " * (hf.MAX_HEADER_BYTES + 1), b""))
    refuse(folder, "header")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (None, "not an object"),
        ([], "not an object"),
        ({}, "not an object"),
        ({**F32, "extra": 1}, "not an object"),
        ({**F32, "data_offsets": [0]}, "data_offsets"),
        ({**F32, "data_offsets": [8, 0]}, "data_offsets"),
        ({**F32, "data_offsets": [-8, 0]}, "data_offsets"),
        ({**F32, "data_offsets": [0, 2**70]}, "data_offsets"),
        ({**F32, "data_offsets": [0.0, 8.0]}, "data_offsets"),
        ({**F32, "data_offsets": [False, 8]}, "data_offsets"),
        ({**F32, "data_offsets": "08"}, "data_offsets"),
        ({**F32, "shape": [3]}, "8 bytes for shape"),
        ({**F32, "shape": []}, "8 bytes for shape"),
        ({**F32, "shape": [-1, -2]}, "positive"),
        ({**F32, "shape": [2, 0]}, "positive"),
        ({**F32, "shape": [2**40, 2**40]}, "8 bytes for shape"),
        ({**F32, "shape": [True, 2]}, "positive"),
        ({**F32, "shape": [1] * 9}, "at most"),
        ({**F32, "shape": None}, "positive"),
        ({**F32, "dtype": 1}, "dtype"),
        ({**F32, "dtype": None}, "dtype"),
    ],
)
def test_impossible_entries(folder: Path, entry: Any, match: str) -> None:
    refuse(write(folder, {"w": entry}, 8), f"'w'.*{match}")


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3", "f32", "nonsense"])
def test_unsupported_dtypes(folder: Path, dtype: str) -> None:
    refuse(write(folder, {"w": {**F32, "dtype": dtype}}, 8), f"'w'.*{dtype}", UnsupportedModelError)


@pytest.mark.parametrize(
    ("offsets", "num_bytes"),
    [([0, 8], 16), ([8, 16], 24), ([4, 12], 16), ([0, 8], 8)],
    ids=["behind", "between", "overlap", "same"],
)
def test_holes_and_overlaps(folder: Path, offsets: list[int], num_bytes: int) -> None:
    other = {} if offsets == [0, 8] and num_bytes == 16 else {"b": {**F32, "data_offsets": offsets}}
    start = {"a": F32} if offsets != [8, 16] else {"a": {**F32, "data_offsets": [16, 24]}}
    refuse(write(folder, start | other, num_bytes), "overlap or leave a hole")


def test_a_name_twice(folder: Path) -> None:
    header = b'{"w":%(e)s,"w":%(e)s}' % {b"e": json.dumps(F32).encode()}
    write_hf(folder, CONFIG, {})
    (folder / hf.WEIGHTS).write_bytes(safetensors_bytes(header, bytes(8)))
    refuse(folder, "twice")
