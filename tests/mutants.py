"""What mutants of model files are made with: seeded damages to bytes, numbers and JSON, and raw writers of the
containers that write whatever they are told. `tests.fuzz` makes and judges the mutants.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

NUMBERS = [0, 1, 2, 3, 7, 8, 31, 32, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
NUMBERS += [2**32, 2**40, 2**53, 2**61, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 8, 2**64 - 1]


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


def near_number(field: bytearray, rng: random.Random) -> bytes:
    """A hostile number, or one close to what was there, or one that overflows when it is multiplied."""
    value, limit = int.from_bytes(field, "little"), 2 ** (8 * len(field))
    near = [value + 1, value - 1, value * 2, value + 32, value ^ 1 << rng.randrange(8 * len(field))]
    overflowing = [limit // max(1, rng.choice([2, 4, 18, 32])) + 1]
    return (rng.choice([*near, *overflowing, *NUMBERS, *NUMBERS]) % limit).to_bytes(len(field), "little")


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


# -- JSON and safetensors ---------------------------------------------------------------------------------------

HOSTILE_VALUES: list[Callable[[], Any]] = [
    *(lambda number=number: number for number in [*NUMBERS, -1, -(2**63), 0.5, 1e308, float("nan"), float("inf")]),
    lambda: None,
    lambda: True,
    lambda: False,
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


def mutate_json(text: str, rng: random.Random, words: list[Any] | None = None) -> bytes:
    """One to three values removed, renamed, exchanged or replaced, half of them by one of `words`, which mean something
    to the reader; sometimes the text itself is damaged.
    """
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if value:
            _mutate_value(value, rng, words or [])
    mutant = json.dumps(value).encode()
    return mutate_bytes(mutant, rng, len(mutant)) if rng.random() < 0.1 else mutant


def _mutate_value(root: Any, rng: random.Random, words: list[Any]) -> None:
    parent, key = _random_place(root, rng)
    action = rng.randrange(6)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[rng.choice(["", "x", "\0", *map(str, parent)])] = parent.pop(key)
    elif action == 2:
        other, other_key = _random_place(root, rng)
        parent[key] = json.loads(json.dumps(other[other_key]))
    elif words and action < 5:
        parent[key] = json.loads(json.dumps(rng.choice(words)))
    else:
        parent[key] = rng.choice(HOSTILE_VALUES)()


def _random_place(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """A container and a key in it, found from the top: long lists deep down are not all that is hit."""
    while True:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        child = value[key]
        if not isinstance(child, (dict, list)) or not child or rng.random() < 0.3:
            return value, key
        value = child


def safetensors_bytes(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


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
