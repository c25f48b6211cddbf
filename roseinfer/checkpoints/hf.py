"""Hugging Face directories: config.json beside safetensors, in one file or in shards named by an index.

The safetensors header is read by our own few lines over a mapping of the file, because the library's NumPy side
copies and has no bfloat16. Specification: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from roseinfer.checkpoints._files import Bytes, about, map_file, read_start
from roseinfer.checkpoints._json import parse_json, read_json
from roseinfer.checkpoints.checkpoint import Checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import CheckpointError, UnsupportedModelError

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_CONFIG_BYTES = 8 * 2**20
MAX_HEADER_BYTES = 16 * 2**20  # of a file's header, and of the index; 130 bytes per tensor are usual
MAX_TENSORS = 200_000
MAX_DIMS = 8

_FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_NUM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# Masks and position ids that models carry along and no graph reads: kept, and refused by roseinfer.quant on use.
_BUFFERS = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}


def matches(path: Path) -> bool:
    if path.is_dir():
        return (path / CONFIG).exists()
    start = read_start(path, 9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def open(path: Path) -> Checkpoint:
    """`path` is the directory or a safetensors file in it."""
    directory = path if path.is_dir() else path.parent
    config = read_json(directory / CONFIG, MAX_CONFIG_BYTES)
    generation_config = _read_optional(directory / GENERATION_CONFIG)
    tensors = _read_tensors(directory, None if path.is_dir() else path)
    return Checkpoint(path, "hf", _architecture(config), config, tensors, generation_config)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path, MAX_CONFIG_BYTES) if path.exists() else {}


def _architecture(config: dict[str, Any]) -> str:
    architecture = config.get("model_type")
    if not isinstance(architecture, str) or not architecture:
        raise CheckpointError(f"{CONFIG}: 'model_type' is missing or not a string")
    if config.get("quantization_config"):
        raise UnsupportedModelError(f"{CONFIG}: weights quantised by 'quantization_config' are not supported")
    return architecture


# -- files ------------------------------------------------------------------------------------------------------


def _read_tensors(directory: Path, file: Path | None) -> dict[str, Tensor]:
    if file is None and (directory / WEIGHTS).exists():
        file = directory / WEIGHTS
    shard_names = _read_index(directory / INDEX) if (directory / INDEX).exists() else {}
    if shard_names and (file is None or file.name in shard_names.values()):
        return _read_shards(directory, shard_names)
    return read_safetensors(file or _only_safetensors(directory))


def _only_safetensors(directory: Path) -> Path:
    files = sorted(directory.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{len(files)} *.safetensors files, and neither {WEIGHTS} nor {INDEX}")
    return files[0]


def _read_shards(directory: Path, file_names: dict[str, str]) -> dict[str, Tensor]:
    shards = {name: read_safetensors(directory / name) for name in sorted(set(file_names.values()))}
    for name, file_name in file_names.items():
        if name not in shards[file_name]:
            raise CheckpointError(f"{INDEX}: tensor {name!r} is not in {file_name}")
    return {name: shards[file_name][name] for name, file_name in file_names.items()}


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name → name of a file in the same directory."""
    weight_map = read_json(path, MAX_HEADER_BYTES).get("weight_map")
    with about(path.name):
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError("'weight_map' is missing, empty or not an object")
        for name, file_name in weight_map.items():
            if not _is_plain_file_name(file_name):
                raise CheckpointError(f"tensor {name!r}: {file_name!r} is not a *.safetensors file beside the index")
        return weight_map


def _is_plain_file_name(name: object) -> bool:
    return (
        isinstance(name, str) and name.endswith(".safetensors") and name.isprintable() and not set(name) & {"/", "\\"}
    )


# -- safetensors ------------------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, as views. The header has to describe every byte behind it, once."""
    with about(path.name):
        data = map_file(path)
        header_bytes = int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
            raise CheckpointError(f"a header of {header_bytes} bytes in a file of {len(data)}")
        header = parse_json(data[8 : 8 + header_bytes].tobytes())
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise CheckpointError(f"{len(header)} tensors, at most {MAX_TENSORS} are allowed")
        return _tensors(header, data[8 + header_bytes :])


def _tensors(header: dict[str, Any], data: Bytes) -> dict[str, Tensor]:
    tensors, spans = {}, []
    for name, entry in header.items():
        with about(f"tensor {name!r}"):
            begin, end = _span(entry, len(data))
            format_name, shape = _format_and_shape(entry, end - begin)
            tensors[name] = Tensor(name, format_name, shape, data[begin:end])
            spans.append((begin, end))
    _require_contiguous(spans, len(data))
    return tensors


def _span(entry: Any, num_bytes: int) -> tuple[int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError("not an object of dtype, shape and data_offsets")
    offsets = entry["data_offsets"]
    if not _is_integers(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] <= num_bytes:
        raise CheckpointError(f"data_offsets are not two positions in {num_bytes} bytes of data")
    return offsets[0], offsets[1]


def _format_and_shape(entry: dict[str, Any], num_bytes: int) -> tuple[str, tuple[int, ...]]:
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str):
        raise CheckpointError("dtype is not a string")
    if not _is_integers(shape) or len(shape) > MAX_DIMS or min(shape, default=1) < 1:
        raise CheckpointError(f"shape is not a list of at most {MAX_DIMS} positive integers")
    item_bytes = _NUM_BYTES.get(dtype) or _BUFFERS.get(dtype)
    if item_bytes is None:
        raise UnsupportedModelError(f"dtype {dtype[:16]!r} is not supported (supported: {', '.join(_FORMATS)})")
    if math.prod(shape) * item_bytes != num_bytes:
        raise CheckpointError(f"{num_bytes} bytes for shape {shape} of {dtype}")
    return _FORMATS.get(dtype, dtype.lower()), tuple(shape)


def _is_integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _require_contiguous(spans: list[tuple[int, int]], num_bytes: int) -> None:
    ends = [(0, 0), *sorted(spans), (num_bytes, num_bytes)]
    for (_, end), (begin, _) in pairwise(ends):
        if begin != end:
            raise CheckpointError(f"tensors overlap or leave a hole: one ends at {end}, the next begins at {begin}")
