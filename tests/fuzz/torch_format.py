"""Torch files: exchanged, hostile and damaged pickle operations, damaged zip records, wild weights."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import zipfile
from typing import Any, NamedTuple

from tests.fuzz.judge import receive_model
from tests.fuzz.mutant import Mutant
from tests.fuzz.random_models import Sizes, torch_settings, torch_shapes
from tests.mutants import NUMBERS, mutate_bytes, torch_zip

__all__ = ["make", "make_bases", "receive", "sound"]

_OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
_GLOBALS = ["os system", "posix system", "builtins eval", "builtins getattr", "builtins __import__", "__builtin__ exec"]
_GLOBALS += ["torch.storage _load_from_bytes", "torch load", "torch.hub load", "numpy load", "subprocess Popen"]
_GLOBALS += ["functools partial", "operator attrgetter", "importlib import_module", "runpy _run_code", "pickle loads"]
_GLOBALS += [
    "collections OrderedDict.__init__",
    "torch.serialization.os system",
    "torch Size",
    "collections OrderedDict",
]
_GLOBALS += ["torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch.nn.modules.container Sequential", "x \xff"]
_CALLS = [
    b"X\x02\0\0\0id\x85R",
    b")R",
    b"}b",
    b"\x85R",
    b"\x86R",
    b")\x81",
    b"\x93",
    b"Q",
    b"h\0h\0\x86R",
    b"u",
    b"s",
    b"a",
    b"e",
]
HOSTILE_OPERATIONS = [
    *(b"c" + name.replace(" ", "\n", 1).encode("latin1") + b"\n" for name in _GLOBALS),
    *(b"c" + name.replace(" ", "\n", 1).encode("latin1") + b"\nX\x07\0\0\0echo hi\x85R" for name in _GLOBALS),
    *_CALLS,
    b"X\x02\0\0\0osX\x06\0\0\0system\x93",
    b"\x82\x01",
    b"(i__main__\nX\n",
    b"I99999999999999999999\n",
    b"\x8a\x10" + b"\xff" * 15 + b"\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"r\xff\xff\xff\xff",
    b"G\x7f\xf8\0\0\0\0\0\0",
    b"(" * 70_000,
    b")" * 70_000,
    b"]" + b"h\0\x85" * 3000,
    *_OPCODES,
]


class Base(NamedTuple):
    content: bytes
    operations: list[bytes]
    pickled: bytes
    storages: dict[str, bytes]
    root: str
    records: list[int]  # where the zip's records begin


def make_bases() -> list[Base]:
    """By torch.save: an OrderedDict with `_metadata`, tied, transposed and half tensors, an optimizer's state."""
    import torch  # seconds, which only these bases need

    def tensors(sizes: Sizes, dtype: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        return {name: torch.randn(shape).to(dtype) for name, shape in torch_shapes(sizes).items()}

    plain = tensors(Sizes(), torch.float32)
    plain["blocks.0.mlp.fc1.weight"] = plain["blocks.0.mlp.fc1.weight"].T.contiguous().T
    plain["lm_head.weight"] = plain["token_embedding.weight"]
    half = {f"module.{name}": tensor for name, tensor in tensors(Sizes(layers=2), torch.bfloat16).items()}
    linear = torch.nn.Linear(2, 2)
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "betas": (0.9, 0.999), "inner": linear.state_dict()}
    config = {"n_layers": 1, "activation": "gelu_new", "names": ["a", None], "dropout": 0.1, "nested": {"x": True}}
    contents = [
        {"model": plain, "config": torch_settings(Sizes()) | config, "optimizer": optimizer, "step": 7},
        {"model": half, "config": torch_settings(Sizes(layers=2))},
    ]
    return [_base(_saved(content)) for content in contents]


def _saved(content: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _base(content: bytes) -> Base:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (root,) = (name.removesuffix("/data.pkl") for name in files if name.endswith("/data.pkl"))
    pickled = files[f"{root}/data.pkl"]
    prefix = f"{root}/data/"
    storages = {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}
    records = [
        at for at in range(len(content) - 3) if content[at : at + 2] == b"PK" and content[at + 2] in (1, 3, 5, 6)
    ]
    return Base(content, _operations(pickled), pickled, storages, root, records)


def _operations(pickled: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(pickled)]
    return [pickled[begin:end] for begin, end in zip(starts, [*starts[1:], len(pickled)], strict=True)]


def sound(bases: list[Base]) -> list[Mutant]:
    return [Mutant({"": base.content}) for base in bases]


def make(bases: list[Base], rng: random.Random) -> Mutant:
    base = rng.choice(bases)
    part = rng.random()
    if part < 0.5:
        return _zipped(base, _mutate_operations(base.operations, rng))
    if part < 0.65:
        return _zipped(base, mutate_bytes(base.pickled, rng, len(base.pickled)))
    if part < 0.75:
        return Mutant({"": torch_zip(base.pickled, _mutate_storages(base.storages, rng), base.root)})
    if part < 0.8:
        byteorder = rng.choice([b"big", b"", b"little\n", b"x" * 100])
        return Mutant({"": torch_zip(base.pickled, base.storages, rng.choice([base.root, "", "a/b"]), byteorder)})
    at = rng.choice(base.records)
    return Mutant({"": base.content[:at] + mutate_bytes(base.content[at:], rng, head=46)})


def _zipped(base: Base, pickled: bytes) -> Mutant:
    return Mutant({"": torch_zip(pickled, base.storages, base.root)})


def _mutate_storages(storages: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """Wild weights, or one that is gone, cut, too long or under another name."""
    mutant = dict(storages)
    key = rng.choice(list(mutant))
    action = rng.randrange(7)
    if action == 0:
        del mutant[key]
    elif action == 1:
        mutant[key] = mutant[key][: -rng.choice([1, 2, 4])]
    elif action == 2:
        mutant[key] += bytes(rng.choice([1, 4]))
    elif action == 3:
        mutant[rng.choice(["../x", "\xff", "0/0", "x" * 5000])] = mutant.pop(key)
    else:
        mutant = {name: rng.randbytes(len(data)) for name, data in mutant.items()}
    return mutant


def _mutate_operations(operations: list[bytes], rng: random.Random) -> bytes:
    mutant = list(operations)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(mutant))
        action = rng.randrange(6)
        if action == 0:
            del mutant[at]
        elif action == 1:
            mutant[at] = rng.choice(operations)
        elif action == 2:
            mutant[at] = rng.choice(HOSTILE_OPERATIONS)
        elif action == 3:
            mutant.insert(at, rng.choice(rng.choice([HOSTILE_OPERATIONS, operations])))
        elif action == 4:
            other = rng.randrange(len(mutant))
            mutant[at], mutant[other] = mutant[other], mutant[at]
        else:
            mutant[at] = _mutate_argument(mutant[at], rng)
    return b"".join(mutant)


def _mutate_argument(operation: bytes, rng: random.Random) -> bytes:
    if operation[:1] in (pickle.BININT1, pickle.BININT2, pickle.BININT, pickle.BINGET, pickle.BINPUT):
        if rng.random() < 0.5:
            return b"\x8a\x08" + (rng.choice(NUMBERS) % 2**64).to_bytes(8, "little")
        return operation[:1] + rng.randbytes(len(operation) - 1)
    return operation[:1] + mutate_bytes(operation[1:], rng, len(operation))


def receive(path: Any, rng: random.Random) -> str:
    return receive_model(path, rng, tokenized_share=0.0)  # there is none
