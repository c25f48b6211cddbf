"""GGUF files: damaged numbers and bytes, hostile descriptions, and sound files of odd sizes with wild weights."""

from __future__ import annotations

import random
import struct
from typing import Any, NamedTuple

from tests.fuzz.gguf_files import ARRAY, NUMBER_CODES, STRING, TENSOR_KINDS, Array, Entry, GgufFile, Key, gguf_model
from tests.fuzz.judge import receive_model as receive
from tests.fuzz.mutant import Mutant
from tests.fuzz.random_models import ARCHITECTURES, Sizes, gguf_shapes, random_weights
from tests.fuzz.small_vocabularies import byte_level_metadata, sentencepiece_metadata
from tests.mutants import NUMBERS, mutate_bytes, near_number

__all__ = ["make", "make_bases", "receive", "sound"]

_FORMATS = tuple(TENSOR_KINDS)
_FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e-12, 1e12, 3e38, -3e38, float("nan"), float("inf"), float("-inf")]
_WORDS: list[str | bytes] = [
    "",
    "llama",
    "gpt2",
    "qwen2",
    "gemma3",
    "none",
    "linear",
    "yarn",
    "longrope",
    "\0",
    "a" * 300,
]
_WORDS += [
    b"\xff\xfe",
    "\x1e",
    "../x",
    "é漢字",
    "x" * 70_000,
    "blk.0.attn_q.weight",
    "output.weight",
    "rope_freqs.weight",
]
_ADDED_KEYS = ["general.alignment", "split.count", "general.architecture", "general.name", "general.file_type"]
_ADDED_KEYS += [
    f"{architecture}.{key}"
    for architecture in ("llama", "gemma3")
    for key in (
        "expert_count",
        "attention.key_length",
        "attention.value_length",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.attn_factor",
        "rope.scale_linear",
        "rope.dimension_count",
        "rope.freq_base_swa",
        "final_logit_softcapping",
    )
]


class Base(NamedTuple):
    file: GgufFile
    content: bytes
    fields: list[tuple[int, int]]  # where its head holds numbers: offset, size
    head_bytes: int


def make_bases() -> list[Base]:
    rng = random.Random(0)
    files = []
    for architecture in ARCHITECTURES:
        sizes = Sizes(ffn=256, layers=2) if architecture == "llama" else Sizes()
        vocabulary = sentencepiece_metadata() if architecture in ("llama", "gemma3") else byte_level_metadata()
        weights = random_weights(gguf_shapes(architecture, sizes), _FORMATS, rng, is_wild=False)
        files.append(gguf_model(architecture, sizes, weights, vocabulary))
    return [_base(file) for file in files]


def _base(file: GgufFile) -> Base:
    gguf, data = file.layout()
    return Base(file, gguf.end(data), gguf.fields, len(gguf.data))


def sound(bases: list[Base]) -> list[Mutant]:
    return [Mutant({"": base.content}) for base in bases]


def make(bases: list[Base], rng: random.Random) -> Mutant:
    part = rng.random()
    if part < 0.1:
        return Mutant({"": odd_model(rng).encode()})
    base = rng.choice(bases)
    if part < 0.35:
        return Mutant({"": _mutate_numbers(base, rng)})
    if part < 0.55:
        return Mutant({"": mutate_bytes(base.content, rng, base.head_bytes)})
    return Mutant({"": mutate_file(base.file, rng)})


def odd_model(rng: random.Random) -> GgufFile:
    """Sound, of sizes that no kernel likes, with bytes that hold NaN and infinity."""
    architecture = rng.choice(ARCHITECTURES)
    sizes = Sizes.odd(rng)
    sizes = sizes.of_gpt2() if architecture == "gpt2" else sizes
    sizes = Sizes(**{**sizes.__dict__, "positions": min(sizes.positions, 128)}) if architecture == "gpt2" else sizes
    weights = random_weights(gguf_shapes(architecture, sizes), _FORMATS, rng, is_wild=rng.random() < 0.7)
    return gguf_model(architecture, sizes, weights, {})


def _mutate_numbers(base: Base, rng: random.Random) -> bytes:
    mutant = bytearray(base.content)
    for offset, size in rng.sample(base.fields, rng.choice([1, 1, 2])):
        mutant[offset : offset + size] = near_number(mutant[offset : offset + size], rng)
    return bytes(mutant)


def mutate_file(file: GgufFile, rng: random.Random) -> bytes:
    mutant = file.copy()
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if mutant.keys and (rng.random() < 0.6 or not mutant.entries):
            rng.choice(_KEY_MUTATORS)(mutant, rng)
        elif mutant.entries:
            rng.choice(_ENTRY_MUTATORS)(mutant, rng)
    return mutant.encode()


# -- keys ---------------------------------------------------------------------------------------------------------


def _another_value(file: GgufFile, rng: random.Random) -> None:
    """Of the same kind."""
    key = rng.choice(file.keys)
    if isinstance(key.value, Array):
        key.value = _mutate_array(key.value, rng)
    elif key.kind == STRING:
        key.value = rng.choice(_WORDS)
    elif key.kind in NUMBER_CODES:
        key.value = _number(rng)


def _mutate_array(array: Array, rng: random.Random) -> Array:
    items = list(array.items)
    action = rng.randrange(7)
    if action == 0:
        return Array(array.kind, items, rng.choice([*NUMBERS, len(items) + 1, len(items) - 1]))
    if action == 1:
        return Array(array.kind, items[: rng.randrange(len(items) + 1)])
    if action == 2 and array.kind in NUMBER_CODES:
        return Array(rng.choice(list(NUMBER_CODES)), items)
    if items and action == 3:
        items[rng.randrange(len(items))] = rng.choice(items)
    elif items:
        for _ in range(rng.choice([1, 1, len(items)])):
            items[rng.randrange(len(items))] = _item(array.kind, rng)
    return Array(array.kind, items)


def _item(kind: int, rng: random.Random) -> Any:
    if kind == ARRAY:
        return _any_array(rng, depth=1)
    return rng.choice(_WORDS) if kind == STRING else _number(rng)


def _number(rng: random.Random) -> Any:
    return rng.choice(_FLOATS) if rng.random() < 0.5 else rng.choice(NUMBERS)


def _another_kind(file: GgufFile, rng: random.Random) -> None:
    key = rng.choice(file.keys)
    key.kind, key.value = _any_value(rng, depth=0)


def _any_value(rng: random.Random, depth: int) -> tuple[int, Any]:
    kind = rng.choice([*NUMBER_CODES, STRING, STRING, ARRAY, ARRAY, ARRAY])
    if kind == ARRAY:
        return kind, _any_array(rng, depth)
    return kind, rng.choice(_WORDS) if kind == STRING else _number(rng)


def _any_array(rng: random.Random, depth: int) -> Array:
    length = rng.choice([0, 1, 2, 48])
    if depth < 6 and rng.random() < 0.3:
        return Array(ARRAY, [_any_array(rng, depth + 1)] * min(length, 3))
    if rng.random() < 0.3:
        return Array(STRING, rng.choices(_WORDS[:10], k=length))
    return Array(rng.choice(list(NUMBER_CODES)), [_number(rng) for _ in range(length)])


def _remove_key(file: GgufFile, rng: random.Random) -> None:
    file.keys.remove(rng.choice(file.keys))


def _repeat_key(file: GgufFile, rng: random.Random) -> None:
    file.keys.insert(rng.randrange(len(file.keys) + 1), rng.choice(file.keys))


def _rename_key(file: GgufFile, rng: random.Random) -> None:
    rng.choice(file.keys).name = rng.choice([*_WORDS, *(key.name for key in file.keys)])


def _add_key(file: GgufFile, rng: random.Random) -> None:
    kind, value = _any_value(rng, depth=0)
    file.keys.append(Key(rng.choice(_ADDED_KEYS), kind, value))


def _exchange_values(file: GgufFile, rng: random.Random) -> None:
    one, other = rng.choice(file.keys), rng.choice(file.keys)
    one.kind, one.value, other.kind, other.value = other.kind, other.value, one.kind, one.value


_KEY_MUTATORS = [_another_value] * 4 + [_another_kind, _add_key, _add_key, _remove_key, _repeat_key, _rename_key]
_KEY_MUTATORS += [_exchange_values]


# -- tensors ------------------------------------------------------------------------------------------------------


def _mutate_dims(file: GgufFile, rng: random.Random) -> None:
    entry = rng.choice(file.entries)
    dims = list(entry.dims)
    action = rng.randrange(5)
    if action == 0:
        dims.reverse()
    elif action == 1:
        dims.append(rng.choice([0, 1, 2, 2**63]))
    elif action == 2 and dims:
        dims.pop()
    elif dims:
        at = rng.randrange(len(dims))
        dims[at] = rng.choice([*NUMBERS, dims[at] * 2, dims[at] // 2, dims[at] + 32, dims[at] - 32])
    entry.dims = dims


def _another_tensor_kind(file: GgufFile, rng: random.Random) -> None:
    rng.choice(file.entries).kind = rng.choice([*range(42), *NUMBERS])


def _rename_tensor(file: GgufFile, rng: random.Random) -> None:
    rng.choice(file.entries).name = rng.choice([*_WORDS, *(entry.name for entry in file.entries)])


def _move_tensor(file: GgufFile, rng: random.Random) -> None:
    rng.choice(file.entries).offset = rng.choice([*NUMBERS, *range(0, 2048, 32)])


def _remove_tensor(file: GgufFile, rng: random.Random) -> None:
    file.entries.remove(rng.choice(file.entries))


def _repeat_tensor(file: GgufFile, rng: random.Random) -> None:
    file.entries.append(rng.choice(file.entries))


def _add_tensor(file: GgufFile, rng: random.Random) -> None:
    """Such as a head of its own, biases, or factors of the rope's frequencies."""
    name = rng.choice(["output.weight", "rope_freqs.weight", "blk.0.attn_q.bias", "blk.9.attn_q.weight", "x.weight"])
    dims = rng.choice([[8], [32], [32, 48], [1], [16]])
    num_values = dims[0] * (dims[1] if len(dims) > 1 else 1)
    values = [rng.choice([1.0, 1.0, 2.0, rng.choice(_FLOATS)]) for _ in range(num_values)]
    file.entries.append(Entry(name, dims, 0, struct.pack(f"<{num_values}f", *values)))


def _wild_bytes(file: GgufFile, rng: random.Random) -> None:
    entry = rng.choice(file.entries)
    entry.data = (
        rng.randbytes(len(entry.data)) if rng.random() < 0.7 else rng.choice([b"\0", b"\xff"]) * len(entry.data)
    )


def _cut_data(file: GgufFile, rng: random.Random) -> None:
    file.entries[-1].data = file.entries[-1].data[: -rng.choice([1, 32, 64])]


def _another_alignment(file: GgufFile, rng: random.Random) -> None:
    file.alignment = rng.choice([1, 2, 8, 64, 4096])
    file.keys.append(Key("general.alignment", 4, file.alignment))


_ENTRY_MUTATORS = [_mutate_dims, _mutate_dims, _another_tensor_kind, _rename_tensor, _move_tensor, _remove_tensor]
_ENTRY_MUTATORS += [_repeat_tensor, _add_tensor, _add_tensor, _wild_bytes, _wild_bytes, _cut_data, _another_alignment]
