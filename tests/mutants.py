"""Damaged and hostile model files, made from sound ones by seeded mutators, and the judge of how they are received.

A mutant must be refused by a `CheckpointError` or load correctly, within `MAX_SECONDS`. The suite runs a few thousand
per container; `python -m tests.mutants --help` runs as many as wanted.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import pickle
import pickletools
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from roseinfer.checkpoints import Checkpoint, open_checkpoint
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from roseinfer.quant import format_names, get_format

MAX_SECONDS = 2.0
NUMBERS = [0, 1, 2, 3, 7, 8, 31, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS += [2**32, 2**40, 2**53, 2**61, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 8, 2**64 - 1]


class Mutant(NamedTuple):
    """File name → content; the empty name stands for the file opened itself, others lie in a directory."""

    files: dict[str, bytes]

    def write(self, folder: Path) -> Path:
        for old in folder.iterdir():
            old.unlink()  # a new file is written much faster than an old one is cut to nothing
        for name, content in self.files.items():
            (folder / (name or "mutant")).write_bytes(content)
        return folder / "mutant" if "" in self.files else folder


# -- the judge --------------------------------------------------------------------------------------------------


def receive(path: Path) -> str:
    """Opens and reads everything; "loaded", or the refusing error's class. Any other behaviour raises."""
    start = time.perf_counter()
    refusal = None
    try:
        with open_checkpoint(path) as checkpoint:
            read_everything(checkpoint)
    except CheckpointError as error:
        refusal = error
    seconds = time.perf_counter() - start
    assert seconds < MAX_SECONDS, f"took {seconds:.1f} s"
    assert refusal is None or str(refusal).startswith(str(path)), f"does not name the file: {refusal}"
    return type(refusal).__name__ if refusal else "loaded"


def read_everything(checkpoint: Checkpoint) -> None:
    assert checkpoint.architecture
    dict(checkpoint.config)
    dict(checkpoint.generation_config)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.name == name
        assert tensor.data.dtype == np.uint8
        assert min(tensor.shape, default=1) > 0
        tensor.data.max()
        if tensor.format in format_names():
            weight_format = get_format(tensor.format)
            num_values = int(np.prod(tensor.shape, dtype=object))
            assert tensor.data.nbytes * weight_format.block_size == num_values * weight_format.block_bytes
            with np.errstate(all="ignore"):
                assert tensor.numpy().shape == tensor.shape
        else:
            assert_refused(tensor.format)


def assert_refused(format_name: str) -> None:
    try:
        get_format(format_name)
    except UnsupportedModelError:
        return
    raise AssertionError(f"{format_name} is not refused")


def run(mutants: Iterator[Mutant], count: int, folder: Path) -> Counter[str]:
    """Outcomes of `count` mutants. The one that is received wrongly is left in `folder`."""
    return Counter(receive(next(mutants).write(folder)) for _ in range(count))


# -- bytes ------------------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: random.Random, head: int) -> bytes:
    """One to three small damages, most of them in the first `head` bytes."""
    mutant = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if mutant:
            limit = min(head, len(mutant)) if rng.random() < 0.9 else len(mutant)
            rng.choice(_BYTE_MUTATORS)(mutant, rng.randrange(limit), rng)
    return bytes(mutant)


def _flip(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def _set(data: bytearray, at: int, rng: random.Random) -> None:
    data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])


def _number(data: bytearray, at: int, rng: random.Random) -> None:
    size = rng.choice([2, 4, 8])
    data[at : at + size] = (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")


def _cut(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at:]


def _remove(data: bytearray, at: int, rng: random.Random) -> None:
    del data[at : at + rng.choice([1, 4, 8, 32])]


def _insert(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = rng.randbytes(rng.choice([1, 4, 8, 32]))


def _repeat(data: bytearray, at: int, rng: random.Random) -> None:
    data[at:at] = data[at : at + rng.choice([1, 8, 24, 64])]


_BYTE_MUTATORS = [_flip, _flip, _set, _number, _number, _cut, _remove, _insert, _repeat]


# -- GGUF -------------------------------------------------------------------------------------------------------


class GgufBytes:
    """A raw GGUF writer that writes whatever it is told, and remembers where each number lies."""

    def __init__(self) -> None:
        self.data = bytearray(b"GGUF")
        self.fields: list[tuple[int, int]] = []  # offset, size

    def number(self, value: int, size: int) -> GgufBytes:
        self.fields.append((len(self.data), size))
        self.data += (value % 2 ** (8 * size)).to_bytes(size, "little")
        return self

    def text(self, value: str | bytes) -> GgufBytes:
        raw = value.encode() if isinstance(value, str) else value
        self.number(len(raw), 8)
        self.data += raw
        return self

    def header(self, num_tensors: int, num_keys: int, version: int = 3) -> GgufBytes:
        return self.number(version, 4).number(num_tensors, 8).number(num_keys, 8)

    def key(self, key: str | bytes, kind: int, payload: bytes = b"") -> GgufBytes:
        self.text(key).number(kind, 4)
        self.data += payload
        return self

    def text_key(self, key: str, value: str) -> GgufBytes:
        return self.key(key, 8).text(value)

    def array_key(self, key: str, kind: int, count: int, payload: bytes = b"") -> GgufBytes:
        self.key(key, 9).number(kind, 4).number(count, 8)
        self.data += payload
        return self

    def tensor(self, name: str | bytes, dims: list[int], kind: int, offset: int) -> GgufBytes:
        self.text(name).number(len(dims), 4)
        for dim in dims:
            self.number(dim, 8)
        return self.number(kind, 4).number(offset, 8)

    def end(self, tensor_data: bytes = b"", alignment: int = 32) -> bytes:
        return bytes(self.data) + b"\0" * (-len(self.data) % alignment) + tensor_data


def sound_gguf() -> GgufBytes:
    """Every kind of value, and tensors of three formats. 256 + 64 + 64 bytes of data have to follow."""
    gguf = GgufBytes().header(num_tensors=3, num_keys=9).text_key("general.architecture", "llama")
    gguf.key("general.alignment", 4).number(32, 4)
    gguf.key("llama.rope.freq_base", 6, struct.pack("<f", 10000.0)).key("flag", 7).number(1, 1)
    gguf.key("wide", 11).number(-5, 8)
    gguf.array_key("tokenizer.ggml.tokens", 8, 3).text("a").text("b").text("é")
    gguf.array_key("tokenizer.ggml.scores", 6, 3, struct.pack("<3f", 0, -1, -2))
    gguf.array_key("flags", 7, 2).number(1, 1).number(0, 1)
    gguf.array_key("nested", 9, 2).number(4, 4).number(1, 8).number(7, 4).number(8, 4).number(1, 8).text("x")
    gguf.tensor("token_embd.weight", [16, 4], 0, 0)
    gguf.tensor("blk.0.attn_q.weight", [32, 2], 2, 256)  # q4_0: 36 bytes
    return gguf.tensor("output_norm.weight", [16], 1, 320)


def gguf_mutants(seed: int) -> Iterator[Mutant]:
    rng = random.Random(seed)
    layout = sound_gguf()
    tensor_data = random.Random(0).randbytes(384)
    sound = layout.end(tensor_data)
    while True:
        if rng.random() < 0.5:
            mutant = bytearray(sound)
            for offset, size in rng.sample(layout.fields, rng.choice([1, 1, 2])):
                mutant[offset : offset + size] = _near(mutant[offset : offset + size], rng)
            yield Mutant({"": bytes(mutant)})
        else:
            yield Mutant({"": mutate_bytes(sound, rng, head=len(layout.data))})


def _near(field: bytearray, rng: random.Random) -> bytes:
    """A hostile number, or one close to what was there, or one that overflows when it is multiplied."""
    value, limit = int.from_bytes(field, "little"), 2 ** (8 * len(field))
    near = [value + 1, value - 1, value * 2, value + 32, value ^ 1 << rng.randrange(8 * len(field))]
    overflowing = [limit // max(1, rng.choice([2, 4, 18, 32])) + 1]
    return (rng.choice([*near, *overflowing, *NUMBERS, *NUMBERS]) % limit).to_bytes(len(field), "little")


# -- JSON and safetensors ---------------------------------------------------------------------------------------

HOSTILE_VALUES: list[Callable[[], Any]] = [
    *(lambda number=number: number for number in [*NUMBERS, -1, -(2**63), 0.5, 1e308, float("nan"), float("inf")]),
    lambda: None,
    lambda: True,
    lambda: "",
    lambda: "../../etc/passwd",
    lambda: "/dev/zero.safetensors",
    lambda: "\ud800.safetensors",
    lambda: "x" * 5000,
    list,
    dict,
    lambda: [0] * 100,
    lambda: [2**32, 2**32],
    lambda: [[[[]]]],
    lambda: _nest(70),
]


def _nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def mutate_json(value: Any, rng: random.Random) -> bytes:
    """Replaces, removes, doubles or renames a value somewhere inside, or damages the text."""
    value = copy.deepcopy(value)
    parent, key = rng.choice(list(_places(value)))
    action = rng.randrange(5)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[rng.choice(["", "x", "\0", *map(str, parent)])] = parent.pop(key)
    elif action == 2:
        _, other = rng.choice(list(_places(value)))
        parent[key] = other
    else:
        parent[key] = rng.choice(HOSTILE_VALUES)()
    text = json.dumps(value).encode()
    return mutate_bytes(text, rng, len(text)) if rng.random() < 0.2 else text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, child in items:
        yield value, key
        if isinstance(child, (dict, list)) and child:
            yield from _places(child)


def safetensors_bytes(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


SOUND_CONFIG = {"model_type": "llama", "hidden_size": 4, "rope_parameters": {"rope_type": "default"}, "eos": [1, 2]}
SOUND_HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [32, 40]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [40, 48]},
}
SOUND_INDEX = {"metadata": {"total_size": 48}, "weight_map": dict.fromkeys("abc", "model-1.safetensors")}


def hf_mutants(seed: int) -> Iterator[Mutant]:
    rng = random.Random(seed)
    data = random.Random(0).randbytes(48)
    header = json.dumps(SOUND_HEADER).encode()
    while True:
        files = {"config.json": json.dumps(SOUND_CONFIG).encode()}
        part = rng.choice(["header", "header", "header", "bytes", "config", "index"])
        if part == "header":
            files["model.safetensors"] = safetensors_bytes(mutate_json(SOUND_HEADER, rng), data)
        elif part == "bytes":
            sound = safetensors_bytes(header, data)
            files["model.safetensors"] = mutate_bytes(sound, rng, rng.choice([8, len(header) + 8]))
        elif part == "config":
            files["config.json"] = mutate_json(SOUND_CONFIG, rng)
            files["model.safetensors"] = safetensors_bytes(header, data)
        else:
            files["model.safetensors.index.json"] = mutate_json(SOUND_INDEX, rng)
            files["model-1.safetensors"] = safetensors_bytes(header, data)
        yield Mutant(files)


# -- torch files ------------------------------------------------------------------------------------------------


def torch_zip(pickled: bytes, storages: dict[str, bytes], root: str = "model", byteorder: bytes = b"little") -> bytes:
    """A stored zip in the layout of torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", byteorder)
        for key, content in storages.items():
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", b"3\n")
    return buffer.getvalue()


def sound_torch_file() -> bytes:
    """By torch.save: an OrderedDict with `_metadata`, tied, transposed and half tensors, an optimizer's state."""
    import torch  # seconds, which only this container's mutants need

    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    model = torch.nn.Linear(4, 2).state_dict()
    model |= {"tied": weight, "head": weight, "transposed": weight.T, "half": weight.half()}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "betas": (0.9, 0.999)}
    buffer = io.BytesIO()
    torch.save({"model": model, "config": {"n_layers": 1, "names": ["a", None]}, "optimizer": optimizer}, buffer)
    return buffer.getvalue()


HOSTILE_OPCODES = [
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"c__builtin__\nexec\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"X\x02\0\0\0osX\x06\0\0\0system\x93",
    b"\x82\x01",
    b"(i__main__\nX\n",
    b"I99999999999999999999\n",
    b"\x8b\xff\xff\xff\x7f",
    b"X\xff\xff\xff\xff",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"r\xff\xff\xff\xff",
    b"X\x02\0\0\0id\x85R",
    *(bytes([opcode.code.encode("latin1")[0]]) for opcode in pickletools.opcodes),
]


def torch_mutants(seed: int) -> Iterator[Mutant]:
    """Opcodes exchanged, removed, doubled or added; damaged bytes of the pickle and of the zip's records."""
    rng = random.Random(seed)
    sound = sound_torch_file()
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        (pickle_name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = pickle_name.removesuffix("/data.pkl")
        pickled = archive.read(pickle_name)
        storages = {
            name.removeprefix(f"{root}/data/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith(f"{root}/data/")
        }
    operations = _operations(pickled)
    records = [at for at in range(len(sound) - 3) if sound[at : at + 2] == b"PK" and sound[at + 2] in (1, 3, 5)]
    while True:
        part = rng.choice(["opcodes", "opcodes", "pickle", "zip"])
        if part == "opcodes":
            yield Mutant({"": torch_zip(_mutate_operations(operations, rng), storages, root)})
        elif part == "pickle":
            yield Mutant({"": torch_zip(mutate_bytes(pickled, rng, len(pickled)), storages, root)})
        else:
            at = rng.choice(records)
            yield Mutant({"": sound[:at] + mutate_bytes(sound[at:], rng, head=46)})


def _operations(pickled: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(pickled)]
    return [pickled[begin:end] for begin, end in zip(starts, [*starts[1:], len(pickled)], strict=True)]


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
            mutant[at] = rng.choice(HOSTILE_OPCODES)
        elif action == 3:
            mutant.insert(at, rng.choice(HOSTILE_OPCODES + operations))
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


# -- command line -----------------------------------------------------------------------------------------------


MUTATORS = {"gguf": gguf_mutants, "hf": hf_mutants, "torch_file": torch_mutants}
MAX_MEMORY = 2 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description="Opens mutants of small model files and stops at the first fault.")
    parser.add_argument("container", choices=MUTATORS)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))  # a MemoryError is a fault, too
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    print(f"mutants are written to {folder}; a faulty one stays there", file=sys.stderr)
    print(dict(run(MUTATORS[arguments.container](arguments.seed), arguments.count, folder)))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
