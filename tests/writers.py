"""Small model files for tests: GGUF through the gguf package, and Hugging Face directories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from roseinfer.quant import get_format

Floats = npt.NDArray[np.float32]


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, Floats]], alignment: int | None = None
) -> Path:
    """`metadata` with "general.architecture", of str, int, float, bool and lists of them; tensors as (format, values).

    Whole numbers become UINT32 (INT32 inside lists), those that do not fit INT64; fractions FLOAT32.
    """
    writer = gguf.GGUFWriter(path, arch=metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _add_value(writer, key, value)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, (format_name, values) in tensors.items():
        _add_tensor(writer, name, format_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_hf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Floats | tuple[str, Floats]],
    generation_config: Mapping[str, Any] | None = None,
    num_shards: int = 1,
) -> Path:
    """A directory; tensors as float32 values or as (format, values) with format f32, f16 or bf16."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if generation_config is not None:
        (path / "generation_config.json").write_text(json.dumps(generation_config))
    if num_shards == 1:
        write_safetensors(path / "model.safetensors", tensors)
    else:
        _write_shards(path, tensors, num_shards)
    return path


def write_safetensors(path: Path, tensors: Mapping[str, Floats | tuple[str, Floats]]) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, end = [], 0
    for name, tensor in tensors.items():
        format_name, values = tensor if isinstance(tensor, tuple) else ("f32", tensor)
        parts.append(_flat_bytes(format_name, values))
        begin, end = end, end + len(parts[-1])
        header[name] = {"dtype": format_name.upper(), "shape": list(values.shape), "data_offsets": [begin, end]}
    return write_safetensors_parts(path, header, b"".join(parts))


def write_safetensors_parts(path: Path, header: Mapping[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def _write_shards(path: Path, tensors: Mapping[str, Floats | tuple[str, Floats]], num_shards: int) -> None:
    weight_map = {}
    for index in range(num_shards):
        file_name = f"model-{index + 1:05}-of-{num_shards:05}.safetensors"
        names = list(tensors)[index::num_shards]
        write_safetensors(path / file_name, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file_name)
    index_json = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index_json))


def _flat_bytes(format_name: str, values: Floats) -> bytes:
    return get_format(format_name).quantize(np.ascontiguousarray(values, np.float32).reshape(-1)).tobytes()


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        kind = _value_type(value[0]) if value else gguf.GGUFValueType.INT32
        kind = gguf.GGUFValueType.INT32 if kind is gguf.GGUFValueType.UINT32 else kind
        writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=kind)
    else:
        writer.add_key_value(key, value, _value_type(value))


def _value_type(value: Any) -> gguf.GGUFValueType:
    if isinstance(value, bool):
        return gguf.GGUFValueType.BOOL
    if isinstance(value, int):
        return gguf.GGUFValueType.UINT32 if 0 <= value < 2**32 else gguf.GGUFValueType.INT64
    return gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.STRING


def _add_tensor(writer: gguf.GGUFWriter, name: str, format_name: str, values: Floats) -> None:
    weight_format = get_format(format_name)
    data = np.frombuffer(_flat_bytes(format_name, values), np.uint8)
    row_bytes = values.shape[-1] // weight_format.block_size * weight_format.block_bytes
    ggml_type = gguf.GGMLQuantizationType[format_name.upper()]
    writer.add_tensor(name, data.reshape(*values.shape[:-1], row_bytes), raw_dtype=ggml_type)
