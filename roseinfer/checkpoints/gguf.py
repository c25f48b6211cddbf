"""GGUF, versions 2 and 3: metadata, tensor descriptions, then aligned tensor data, all in one file.

Our own reader, because the file may come from anywhere: every count and length is held against the bytes that
remain before anything is made of it. Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from roseinfer.checkpoints._files import about, map_file, read_start
from roseinfer.checkpoints._gguf_metadata import read_metadata
from roseinfer.checkpoints._gguf_reader import Reader
from roseinfer.checkpoints._spans import require_disjoint
from roseinfer.checkpoints.checkpoint import Checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from roseinfer.quant import get_format

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = MAX_TENSORS = 65_536
MAX_TENSOR_NAME_BYTES = 256
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32

# ggml_type → name. Which of them can be run is for roseinfer/quant to say.
_GGML_TYPES = {
    **dict(enumerate(["f32", "f16", "q4_0", "q4_1"])),
    **dict(enumerate(["q5_0", "q5_1", "q8_0", "q8_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_k"], 6)),
    **dict(enumerate(["iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s", "iq4_nl", "iq3_s", "iq2_s", "iq4_xs"], 16)),
    **dict(enumerate(["i8", "i16", "i32", "i64", "f64", "iq1_m", "bf16"], 24)),
    **dict(enumerate(["tq1_0", "tq2_0"], 34)),
    **dict(enumerate(["mxfp4", "nvfp4", "q1_0"], 39)),
}


class _Entry(NamedTuple):
    """A tensor's description; `offset` counts from the start of the tensor data."""

    name: str
    format: str
    shape: tuple[int, ...]
    num_bytes: int
    offset: int


def matches(path: Path) -> bool:
    return read_start(path, len(MAGIC)) == MAGIC


def open(path: Path) -> Checkpoint:
    reader = Reader(map_file(path))
    num_tensors, num_keys = _read_header(reader)
    metadata = read_metadata(reader, num_keys, path)
    _require_single_file(metadata)
    alignment = _alignment(metadata)
    entries = [_read_entry(reader, index) for index in range(num_tensors)]
    tensors = _tensors(reader, entries, alignment)
    return Checkpoint(path, "gguf", _architecture(metadata), metadata, tensors)


def _read_header(reader: Reader) -> tuple[int, int]:
    """The numbers of tensors and of metadata keys."""
    reader.skip(len(MAGIC))
    version = reader.u32()
    if version and version & 0xFFFF == 0:
        raise UnsupportedModelError("a big-endian GGUF file; only little-endian ones are supported")
    if version not in VERSIONS:
        raise UnsupportedModelError(f"GGUF version {version} is not supported (supported: 2, 3)")
    num_tensors, num_keys = reader.u64(), reader.u64()
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        raise CheckpointError(f"{num_tensors} tensors and {num_keys} keys: at most {MAX_TENSORS} of each are allowed")
    return num_tensors, num_keys


def _require_single_file(metadata: Mapping[str, Any]) -> None:
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModelError("one part of a split GGUF model; merge the parts first (llama-gguf-split --merge)")


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"key 'general.alignment': {alignment!r} is not a power of two")
    return alignment


def _architecture(metadata: Mapping[str, Any]) -> str:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise CheckpointError("key 'general.architecture' is missing or not a string")
    return architecture


def _read_entry(reader: Reader, index: int) -> _Entry:
    with about(f"tensor {index}"):
        name = reader.text(MAX_TENSOR_NAME_BYTES)
    with about(f"tensor {name!r}"):
        num_dims = reader.u32()
        if not 1 <= num_dims <= MAX_DIMS:
            raise CheckpointError(f"{num_dims} axes, 1 to {MAX_DIMS} are allowed")
        shape = tuple(reader.u64() for _ in range(num_dims))[::-1]  # the file's first axis is the contiguous one
        format_name = _format_name(reader.u32())
        return _Entry(name, format_name, shape, _num_bytes(format_name, shape), reader.u64())


def _format_name(ggml_type: int) -> str:
    if ggml_type not in _GGML_TYPES:
        raise UnsupportedModelError(f"unknown ggml type {ggml_type}")
    return get_format(_GGML_TYPES[ggml_type]).name


def _num_bytes(format_name: str, shape: tuple[int, ...]) -> int:
    weight_format = get_format(format_name)
    if min(shape) < 1 or shape[-1] % weight_format.block_size:
        raise CheckpointError(f"shape {list(shape)} is no whole number of {format_name} blocks")
    return math.prod(shape) // weight_format.block_size * weight_format.block_bytes


def _tensors(reader: Reader, entries: list[_Entry], alignment: int) -> dict[str, Tensor]:
    start = -(-reader.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        with about(f"tensor {entry.name!r}"):
            if entry.name in tensors:
                raise CheckpointError("is there twice")
            tensors[entry.name] = _tensor(reader, entry, start, alignment)
    require_disjoint((entry.offset, entry.offset + entry.num_bytes, entry.name) for entry in entries)
    return tensors


def _tensor(reader: Reader, entry: _Entry, start: int, alignment: int) -> Tensor:
    begin, end = start + entry.offset, start + entry.offset + entry.num_bytes
    if entry.offset % alignment:
        raise CheckpointError(f"offset {entry.offset} is not a multiple of {alignment}")
    if end > len(reader.data):
        raise CheckpointError(f"bytes {begin} to {end} lie beyond the file's {len(reader.data)}")
    return Tensor(entry.name, entry.format, entry.shape, reader.data[begin:end])
