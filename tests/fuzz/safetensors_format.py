"""Safetensors: damaged headers, bytes and shard indices of sound directories, and models of odd sizes."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

from tests.fuzz.judge import receive_model
from tests.fuzz.mutant import Mutant
from tests.fuzz.random_models import ARCHITECTURES, FLOATS, Sizes, Weight, hf_settings, hf_shapes, random_weights
from tests.mutants import mutate_bytes, mutate_json, safetensors_bytes

__all__ = ["make", "make_bases", "receive", "sound"]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_WORDS: list[Any] = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "I64",
    "U8",
    "BOOL",
    "F8_E4M3",
    "I4",
    [0, 0],
    [32, 32],
    [1],
    [],
    [48, 32],
]
_WORDS += [[0, 64], [64, 0], [-1, 1], [2**62, 2**62, 4], {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, {}]
_WORDS += ["model-1.safetensors", "model-3.safetensors", "config.json", "../model.safetensors", "model-1.safetensors\0"]


class Base(NamedTuple):
    """A directory whose weights lie in `shards`: file name → header and data."""

    config: dict[str, Any]
    shards: dict[str, tuple[dict[str, Any], bytes]]

    @property
    def index(self) -> dict[str, Any]:
        names = {name: file for file, (header, _) in self.shards.items() for name in header if name != "__metadata__"}
        return {"metadata": {"total_size": sum(len(data) for _, data in self.shards.values())}, "weight_map": names}

    def files(self) -> dict[str, bytes]:
        files = {CONFIG: json.dumps(self.config).encode()}
        if len(self.shards) > 1:
            files[INDEX] = json.dumps(self.index).encode()
        shards = {
            file: safetensors_bytes(json.dumps(header).encode(), data) for file, (header, data) in self.shards.items()
        }
        return {**files, **shards}


def make_bases() -> list[Base]:
    rng = random.Random(0)
    models = [random_base(architecture, Sizes(), rng, is_wild=False, num_shards=1) for architecture in ARCHITECTURES]
    models.append(random_base("qwen3", Sizes(layers=2), rng, is_wild=False, num_shards=2))
    extra = {"lm_head.weight": Weight("f32", (48, 32), bytes(48 * 32 * 4))}
    models[0].shards[WEIGHTS] = _shard(_weights("llama", Sizes(), rng, is_wild=False) | extra)
    return models


def random_base(architecture: str, sizes: Sizes, rng: random.Random, *, is_wild: bool, num_shards: int) -> Base:
    weights = list(_weights(architecture, sizes, rng, is_wild=is_wild).items())
    names = [WEIGHTS] if num_shards == 1 else [f"model-{i + 1}.safetensors" for i in range(num_shards)]
    shards = {file: _shard(dict(weights[i::num_shards])) for i, file in enumerate(names)}
    return Base(hf_settings(architecture, sizes), shards)


def _weights(architecture: str, sizes: Sizes, rng: random.Random, *, is_wild: bool) -> dict[str, Weight]:
    return random_weights(hf_shapes(architecture, sizes), FLOATS, rng, is_wild=is_wild)


def _shard(weights: dict[str, Weight]) -> tuple[dict[str, Any], bytes]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, weight in weights.items():
        offsets = [len(data), len(data) + len(weight.data)]
        header[name] = {"dtype": _DTYPES[weight.format], "shape": list(weight.shape), "data_offsets": offsets}
        data += weight.data
    return header, bytes(data)


def sound(bases: list[Base]) -> list[Mutant]:
    return [Mutant(base.files()) for base in bases]


def make(bases: list[Base], rng: random.Random) -> Mutant:
    part = rng.random()
    if part < 0.1:
        return Mutant(odd_model(rng).files())
    base = rng.choice(bases)
    files = base.files()
    if part < 0.2 and INDEX in files:
        files[INDEX] = mutate_json(files[INDEX].decode(), rng, _WORDS)
        return Mutant(files)
    file = rng.choice(list(base.shards))
    files[file] = _mutate_shard(files[file], base, file, rng, part)
    return Mutant(files)


def _mutate_shard(content: bytes, base: Base, file: str, rng: random.Random, part: float) -> bytes:
    header, data = base.shards[file]
    head_bytes = int.from_bytes(content[:8], "little")
    if part < 0.45:
        return mutate_bytes(content, rng, rng.choice([8, head_bytes + 8]))
    if part < 0.55:
        return safetensors_bytes(content[8 : 8 + head_bytes], _wild(data, rng))
    if part < 0.65:
        return safetensors_bytes(json.dumps(_reshaped(header, rng)).encode(), data)
    return safetensors_bytes(mutate_json(json.dumps(header), rng, _WORDS), data)


def _wild(data: bytes, rng: random.Random) -> bytes:
    """Random weights, or some too few or too many."""
    if rng.random() < 0.7:
        return rng.randbytes(len(data))
    return data[: -rng.choice([1, 2, 64])] if rng.random() < 0.5 else data + bytes(rng.choice([1, 2, 64]))


def _reshaped(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Some tensors with other shapes of as many values, another type of the same width, or another name."""
    changed = json.loads(json.dumps(header))
    for name in rng.sample([name for name in header if name != "__metadata__"], rng.choice([1, 1, 2])):
        entry = changed[name]
        action = rng.randrange(4)
        if action == 0:
            entry["shape"] = rng.choice([entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]]])
        elif action == 1:
            same = {"F32": ["I32", "U32"], "F16": ["BF16", "I16", "U16"], "BF16": ["F16", "I16"]}
            entry["dtype"] = rng.choice(same[entry["dtype"]])
        elif action == 2:
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            entry |= {"shape": [] if size == 1 else [size], "dtype": "U8"}
        else:
            changed[rng.choice(["x", f"module.{name}", f"{name}.bias", *header])] = changed.pop(name)
    return changed


def odd_model(rng: random.Random) -> Base:
    architecture = rng.choice(ARCHITECTURES)
    sizes = Sizes.odd(rng)
    if architecture == "gpt2":
        sizes = Sizes(**{**sizes.of_gpt2().__dict__, "positions": 20})
    return random_base(architecture, sizes, rng, is_wild=rng.random() < 0.7, num_shards=rng.choice([1, 1, 2]))


def receive(path: Any, rng: random.Random) -> str:
    return receive_model(path, rng, tokenized_share=0.0)  # there is none
