"""From a file's tensors to the graph's: renaming, reshaping, and the check that they are exactly those it wants."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from roseinfer.quant import format_names, get_format

Tensors = dict[str, Tensor]

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_LAYER = re.compile(r"\.([0-9]{1,6})\.")


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str | None]) -> Tensors:
    """Gives tensors their canonical names. `names` maps a module's name, with {} for the layer, to ours; None drops
    it. A name it does not know is kept, and found by `fit`.
    """
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        target = _canonical(_WRAPPERS.sub("", name, count=1), names)
        if target is None:
            continue
        if target in renamed:
            raise CheckpointError(f"tensors {renamed[target].name} and {name} are both {target}")
        renamed[target] = tensor
    return renamed


def _canonical(name: str, names: Mapping[str, str | None]) -> str | None:
    module, _, leaf = name.rpartition(".")
    layer = _LAYER.search(module + ".")
    pattern = _LAYER.sub(".{}.", module + ".", count=1).removesuffix(".")
    if pattern not in names:
        return name
    target = names[pattern]
    return None if target is None else f"{target.format(layer.group(1) if layer else '')}.{leaf}"


def fit(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Exactly the tensors that `shapes` names, in its order and under its names; anything else is an error."""
    for name in shapes:
        if name not in tensors:
            raise CheckpointError(f"tensor {name} is missing")
    for name, tensor in tensors.items():
        if name not in shapes:
            raise CheckpointError(f"tensor {tensor.name} is not part of this architecture")
        if tensor.shape != shapes[name]:
            raise CheckpointError(f"tensor {tensor.name} has shape {list(tensor.shape)}, expected {list(shapes[name])}")
        _require_weights(tensor)
    return {name: tensors[name].renamed(name) for name in shapes}


def _require_weights(tensor: Tensor) -> None:
    """Files also carry integers, as masks, which open well."""
    if tensor.format not in format_names():
        raise UnsupportedModelError(f"tensor {tensor.name} holds {tensor.format}, which no weights can be in")


def drop_repeated_output(tensors: Tensors) -> Tensors:
    """Without an output head that only repeats the embedding: both then share one memory."""
    head, embedding = tensors.get("output.weight"), tensors.get("token_embd.weight")
    if head is not None and embedding is not None and _same_values(head, embedding):
        return {name: tensor for name, tensor in tensors.items() if name != "output.weight"}
    return tensors


def _same_values(a: Tensor, b: Tensor) -> bool:
    return (a.format, a.shape) == (b.format, b.shape) and bool(np.array_equal(a.data, b.data))


def transpose(tensor: Tensor) -> Tensor:
    """[in, out] to [out, in], in the tensor's own format, which must be unquantised."""
    matrix = _elements(tensor)
    return Tensor(tensor.name, tensor.format, tensor.shape[::-1], _bytes(matrix.T))


def split_rows(tensors: Mapping[str, Tensor], fused: str, parts: Mapping[str, int]) -> Tensors:
    """Cuts each layer's projection called `fused` into `parts` (name → rows), weight and bias alike."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        if f".{fused}." not in name:
            result[name] = tensor
            continue
        if tensor.shape[0] != sum(parts.values()):
            raise CheckpointError(f"tensor {tensor.name} has {tensor.shape[0]} rows, expected {sum(parts.values())}")
        start = 0
        for part, rows in parts.items():
            result[name.replace(fused, part)] = tensor.take_rows(slice(start, start + rows))
            start += rows
    return result


def _elements(tensor: Tensor) -> npt.NDArray[np.void]:
    """[rows, columns] of opaque elements, whatever number format they have."""
    weight_format = get_format(tensor.format)
    if weight_format.block_size != 1 or len(tensor.shape) != 2:
        raise UnsupportedModelError(f"tensor {tensor.name} ({tensor.format}) cannot be transposed")
    return tensor.data.view(np.dtype(("V", weight_format.block_bytes))).reshape(tensor.shape)


def _bytes(matrix: npt.NDArray[np.void]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(matrix).reshape(-1).view(np.uint8)
