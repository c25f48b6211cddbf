"""Torch files with a GPT-2-like model: `{"model": state_dict, "config": {...}}` as torch.save writes it.

Read without torch, and without running anything in the file: the zip's entries are views, the pickle goes through
the interpreter in `_unpickler` with the stubs below. Only "model" and "config" are made into anything; optimizer,
scaler and the like stay unread pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from roseinfer.checkpoints._files import Bytes, about, map_file, read_start
from roseinfer.checkpoints._unpickler import Function, Pairs, Skipped, unpickle
from roseinfer.checkpoints._zip import stored_entries
from roseinfer.checkpoints.checkpoint import Checkpoint
from roseinfer.checkpoints.tensor import Tensor
from roseinfer.core.errors import CheckpointError, UnsupportedModelError

ARCHITECTURE = "gpt2"
CONFIG_DEFAULTS = {
    "vocab_size": 32000,
    "max_position_embeddings": 1024,
    "n_layers": 12,
    "n_heads": 12,
    "d_model": 768,
    "d_ff": 3072,
}
MAX_DIMS = 8
MAX_CONFIG_DEPTH = 8
MAX_CONFIG_VALUES = 10_000
_MAX_SIZE = 2**48

_ZIP, _PICKLE = b"PK", b"\x80"
_WRAPPERS = {"module", "_orig_mod"}  # DistributedDataParallel, torch.compile


def matches(path: Path) -> bool:
    start = read_start(path, 2)
    return start == _ZIP or (start[:1] == _PICKLE and start[1:] in (b"\2", b"\3", b"\4", b"\5"))


def open(path: Path) -> Checkpoint:
    if read_start(path, 1) == _PICKLE:
        raise UnsupportedModelError("a torch file of the old format (before 1.6); load it and torch.save it again")
    data = map_file(path)
    entries = stored_entries(data)
    root = _archive_root(entries)
    with about("data.pkl"):
        content = _members(unpickle(entries[f"{root}/data.pkl"].tobytes(), _STUBS, _storage), "the file")
    if "model" not in content:
        raise CheckpointError('holds no "model"; {"model": state_dict, "config": {...}} is wanted')
    storages = {name.removeprefix(f"{root}/data/"): entry for name, entry in entries.items()}
    with about("model"):
        tensors = _Tensors(storages, max_copied_bytes=len(data)).read(content["model"])
    with about("config"):
        config = CONFIG_DEFAULTS | _config(content.get("config", Pairs()))
    return Checkpoint(path, "torch_file", ARCHITECTURE, config, tensors)


def _archive_root(entries: Mapping[str, Bytes]) -> str:
    """The folder that everything in the archive lies in."""
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise CheckpointError("a zip archive, but not one that torch.save wrote (no single data.pkl)")
    if f"{roots[0]}/constants.pkl" in entries:
        raise UnsupportedModelError("a TorchScript archive; save the state_dict with torch.save instead")
    if entries.get(f"{roots[0]}/byteorder", np.frombuffer(b"little", np.uint8)).tobytes() != b"little":
        raise UnsupportedModelError("saved on a big-endian machine")
    return roots[0]


def _members(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, Pairs):
        raise CheckpointError(f"{what} holds a {type(value).__name__} where a dict is wanted")
    members = {key: member for key, member in value.items if isinstance(key, str)}
    if len(members) != len(value.items):
        raise CheckpointError(f"{what} has a key twice or one that is not a string")
    return members


# -- config -----------------------------------------------------------------------------------------------------


def _config(value: Any) -> dict[str, Any]:
    budget = iter(range(MAX_CONFIG_VALUES))
    return {key: _plain(member, key, MAX_CONFIG_DEPTH, budget) for key, member in _members(value, "it").items()}


def _plain(value: Any, key: str, depth: int, budget: Iterator[int]) -> Any:
    """Values that the memo shares are counted each time: an exponential nesting stays small in the pickle."""
    if next(budget, None) is None or depth == 0:
        raise CheckpointError(f"{key!r} is nested deeper than {MAX_CONFIG_DEPTH} or has too many values")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, key, depth - 1, budget) for item in value]
    if isinstance(value, Pairs):
        return {name: _plain(item, key, depth - 1, budget) for name, item in _members(value, repr(key)).items()}
    raise CheckpointError(f"{key!r} is a {_kind(value)}, not a plain value")


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Skipped) else type(value).__name__.strip("_").lower()


# -- tensors ----------------------------------------------------------------------------------------------------


class _DType(NamedTuple):
    format: str  # of roseinfer/quant where there is one
    num_bytes: int


@dataclass(frozen=True, eq=False)
class _StorageType:
    dtype: _DType | None  # None: bytes without a type


@dataclass(frozen=True, eq=False)
class _Storage:
    key: str  # the entry data/<key>
    dtype: _DType | None
    num_bytes: int


@dataclass(frozen=True, eq=False)
class _Rebuilt:
    """A tensor as the pickle describes it; nothing is proven, as it may never be used."""

    storage: _Storage
    dtype: _DType
    offset: Any
    shape: Any
    strides: Any


@dataclass(frozen=True, eq=False)
class _Strided:
    """Proven: the elements are distinct and lie within the storage's bytes. Offset and strides in elements."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True


class _Tensors:
    """The state dict's tensors over the archive's storages."""

    def __init__(self, storages: Mapping[str, Bytes], max_copied_bytes: int) -> None:
        self._storages = storages
        self._copies_left = max_copied_bytes

    def read(self, state_dict: Any) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, value in _members(state_dict, "it").items():
            own_name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
            with about(f"tensor {name!r}"):
                if own_name in tensors:
                    raise CheckpointError("is there twice")
                tensors[own_name] = self._tensor(own_name, value)
        return tensors

    def _tensor(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, _Rebuilt):
            raise CheckpointError(f"is a {_kind(value)}")
        if value.dtype.format in _UNSUPPORTED:
            raise UnsupportedModelError(f"dtype {value.dtype.format} is not supported (supported: f32, f16, bf16)")
        strided = _prove(value)
        storage = self._storages.get(value.storage.key)
        if storage is None or len(storage) != value.storage.num_bytes:
            raise CheckpointError(f"its storage {value.storage.key[:32]!r} is missing or not of the size stated")
        data = self._bytes(strided, storage, value.dtype.num_bytes)
        return Tensor(name, value.dtype.format, strided.shape, data)

    def _bytes(self, tensor: _Strided, storage: Bytes, item_bytes: int) -> Bytes:
        num_bytes = math.prod(tensor.shape) * item_bytes
        data = storage[tensor.offset * item_bytes :]
        if tensor.is_contiguous:
            return data[:num_bytes]
        self._copies_left -= num_bytes
        if self._copies_left < 0:
            raise CheckpointError("transposed or cut tensors are larger in sum than the file")
        items = data[: len(data) // item_bytes * item_bytes].view(f"V{item_bytes}")
        strides = [stride * item_bytes for stride in tensor.strides]
        strided = np.lib.stride_tricks.as_strided(items, tensor.shape, strides, writeable=False)
        return np.ascontiguousarray(strided).reshape(-1).view(np.uint8)


def _prove(tensor: _Rebuilt) -> _Strided:
    offset, shape, strides = _size(tensor.offset, 0), _sizes(tensor.shape, 1), _sizes(tensor.strides, 0)
    if len(shape) != len(strides):
        raise CheckpointError(f"{len(shape)} axes and {len(strides)} strides")
    last = 0  # the highest element reached by the axes so far, from the tightest stride on
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride <= last:
            raise CheckpointError("its elements overlap")
        last += (size - 1) * stride
    if (offset + last + 1) * tensor.dtype.num_bytes > tensor.storage.num_bytes:
        raise CheckpointError("reaches beyond its storage")
    return _Strided(offset, shape, strides)


# -- stubs: what the pickle may refer to ------------------------------------------------------------------------


def _storage(persistent_id: Any) -> _Storage:
    """("storage", type, key, device it was saved from, number of elements); the device does not matter here."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) != 5:
        raise CheckpointError("a storage is not named by five values")
    tag, kind, key, _, count = persistent_id
    if not isinstance(tag, str) or tag != "storage" or not isinstance(kind, _StorageType) or not isinstance(key, str):
        raise CheckpointError("a persistent id does not name a storage")
    item_bytes = kind.dtype.num_bytes if kind.dtype else 1
    return _Storage(key, kind.dtype, _size(count, 0) * item_bytes)


def _size(value: Any, minimum: int) -> int:
    if type(value) is not int or not minimum <= value < _MAX_SIZE:
        raise CheckpointError("a size, stride or offset is not a number in its range")
    return value


def _sizes(value: Any, minimum: int) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MAX_DIMS:
        raise CheckpointError(f"a shape or strides that are not a tuple of at most {MAX_DIMS} sizes")
    return tuple(_size(item, minimum) for item in value)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> _Rebuilt:
    """torch._utils._rebuild_tensor_v2: (storage, offset, size, stride, requires_grad, hooks[, metadata])."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], _Storage) or arguments[0].dtype is None:
        raise CheckpointError("a tensor is not built from a typed storage")
    return _Rebuilt(arguments[0], arguments[0].dtype, *arguments[1:4])


def _rebuild_typed_tensor(arguments: tuple[Any, ...]) -> _Rebuilt:
    """torch._utils._rebuild_tensor_v3: (storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])."""
    if len(arguments) not in (7, 8) or not isinstance(arguments[0], _Storage) or not isinstance(arguments[6], _DType):
        raise CheckpointError("a tensor is not built from a storage and a dtype")
    return _Rebuilt(arguments[0], arguments[6], *arguments[1:4])


def _rebuild_parameter(arguments: tuple[Any, ...]) -> _Rebuilt:
    """torch._utils._rebuild_parameter[_with_state]: (tensor, requires_grad, hooks[, state])."""
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], _Rebuilt):
        raise CheckpointError("a parameter is not built from a tensor")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> Pairs:
    if arguments:
        raise CheckpointError("an OrderedDict is built from something")
    return Pairs()


_DTYPES = {
    "float32": _DType("f32", 4),
    "float16": _DType("f16", 2),
    "bfloat16": _DType("bf16", 2),
    "float64": _DType("f64", 8),
    "complex64": _DType("c64", 8),
    "complex128": _DType("c128", 16),
    "int64": _DType("i64", 8),
    "int32": _DType("i32", 4),
    "int16": _DType("i16", 2),
    "int8": _DType("i8", 1),
    "uint8": _DType("u8", 1),
    "uint16": _DType("u16", 2),
    "uint32": _DType("u32", 4),
    "uint64": _DType("u64", 8),
    "bool": _DType("bool", 1),
}
_UNSUPPORTED = {"f64", "c64", "c128"}  # integers are buffers that no graph reads, as in hf.py
_STORAGES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
# What optimizers, schedulers and generators' states are made of besides tensors. Never called, never usable.
_SKIPPED = [
    "torch.Size",
    "torch.device",
    "collections.Counter",
    "collections.defaultdict",
    "argparse.Namespace",
    "pathlib.PosixPath",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
]
_STUBS: dict[str, Any] = {
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
    **{f"torch.{name}Storage": _StorageType(_DTYPES[dtype]) for name, dtype in _STORAGES.items()},
    **{name: Skipped(name) for name in _SKIPPED},
    "torch.storage.UntypedStorage": _StorageType(None),
    "torch._utils._rebuild_tensor_v2": Function(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": Function(_rebuild_typed_tensor),
    "torch._utils._rebuild_parameter": Function(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": Function(_rebuild_parameter),
    "collections.OrderedDict": Function(_ordered_dict),
}
