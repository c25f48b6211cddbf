"""Vocabularies: tokenizer.json with the files beside it, and a GGUF file's `tokenizer.ggml.*`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

from roseinfer.text.loading import load_tokenizer
from tests.fuzz.gguf_files import ARRAY, NUMBER_CODES, STRING, Array, GgufFile, Key, typed
from tests.fuzz.judge import outcome_of, receive_tokenizer
from tests.fuzz.mutant import Mutant
from tests.fuzz.small_vocabularies import (
    TEMPLATE,
    byte_level_metadata,
    gemma4_metadata,
    sentencepiece_metadata,
    tokenizer_files,
)
from tests.mutants import NUMBERS, mutate_json

__all__ = ["make", "make_bases", "receive", "sound"]

_PRE_TOKENIZERS = [
    "default",
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "qwen35",
    "tekken",
    "gpt-4o",
    "deepseek-llm",
    "deepseek-v3",
]
_PRE_TOKENIZERS += ["falcon", "bloom", "viking", "bailingmoe", "seed-coder", "command-r", "deepseek-coder", "", "x"]
_TEXTS: list[str | bytes] = [
    "",
    " ",
    "a",
    "a b",
    "a  b",
    "▁",
    "Ġ",
    "<s>",
    "</s>",
    "<0x00>",
    "<0xFF>",
    "<0xGG>",
    "\0",
    "\n",
]
_TEXTS += [
    "\ufdd0\ufdd1",
    "é",
    "🙂",
    "x" * 3000,
    b"\xff",
    "hello",
    "]",
    "^",
    "[",
    "\\",
    "a-z",
    "(?",
    ".*",
    "hell o",
    "he ll",
]
_TEMPLATES = [
    TEMPLATE,
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ messages",
    "{{ raise_exception('no') }}",
    "{{ 1/0 }}",
]
_IDS = [0, 1, 2, 47, 48, -1, 2**31 - 1, 2**32 - 1]
_FLOATS = [0.0, -1.0, 1e30, float("nan"), float("inf"), float("-inf")]
_REGEXES = [
    "(a+)+$",
    "(a|a)*$",
    "(.*)*x",
    "",
    "(",
    "(?<=a{1,100})",
    "\\p{L}",
    "[[:alpha:]",
    "(?:(?:(?:a*)*)*)*b",
    "^",
    "\\G",
    "$",
]
_WORDS: list[Any] = [
    *[{"Regex": pattern} for pattern in _REGEXES],
    *[{"String": text} for text in ("", " ", "a", "▁")],
    *[
        "BPE",
        "Unigram",
        "WordLevel",
        "WordPiece",
        "ByteLevel",
        "Metaspace",
        "Sequence",
        "Split",
        "Replace",
        "Strip",
        "Fuse",
    ],
    *[
        "ByteFallback",
        "TemplateProcessing",
        "BertProcessing",
        "RobertaProcessing",
        "Prepend",
        "NFKC",
        "Whitespace",
        "CTC",
    ],
    *[
        "always",
        "never",
        "first",
        "Isolated",
        "MergedWithNext",
        "Removed",
        "OnlyFirst",
        "LongestFirst",
        "",
        "▁",
        "▁▁",
        "é",
    ],
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Sequence", "normalizers": [], "pretokenizers": [], "decoders": [], "processors": []},
    {"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40, "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": "x" * 10_000},
    {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "aa"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
    {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"},
    {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]], "byte_fallback": True},
    {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]], "dropout": 0.5},
    {"max_length": 2**40, "strategy": "LongestFirst", "stride": 2**40, "direction": "Right"},
    {
        "strategy": {"Fixed": 2**34},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    },
    {
        "id": 2**32 - 1,
        "content": "huge",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    },
    {
        "id": 2**22,
        "content": "",
        "single_word": True,
        "lstrip": True,
        "rstrip": True,
        "normalized": True,
        "special": False,
    },
    *[["a", "b"], ["a", "a"], "a b", ["", ""], [["a", "b"]], {"a": 0}, {"a": 2**32 - 1}, {"": 0}],
    *_IDS,
    *[0.5, 2.0, True, False],
    *_TEMPLATES,
    [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "{{ tools }}"}],
]


class Bases(NamedTuple):
    directories: list[dict[str, str]]
    vocabularies: list[dict[str, Any]]


def make_bases() -> Bases:
    return Bases(tokenizer_files(), [sentencepiece_metadata(), byte_level_metadata(), gemma4_metadata()])


def sound(bases: Bases) -> list[Mutant]:
    files = [Mutant({"": _gguf(vocabulary).encode()}) for vocabulary in bases.vocabularies]
    return [*(_directory(directory) for directory in bases.directories), *files]


def _directory(texts: dict[str, str]) -> Mutant:
    return Mutant({name: text.encode() for name, text in texts.items()})


def _gguf(vocabulary: dict[str, Any]) -> GgufFile:
    return GgufFile([typed("general.architecture", "llama"), *(typed(key, value) for key, value in vocabulary.items())])


def make(bases: Bases, rng: random.Random) -> Mutant:
    if rng.random() < 0.5:
        file = _gguf(rng.choice(bases.vocabularies))
        for _ in range(rng.choice([1, 1, 2, 3])):
            _mutate_key(rng.choice(file.keys), file, rng)
        return Mutant({"": file.encode()})
    texts = rng.choice(bases.directories)
    name = rng.choice(["tokenizer.json"] * 6 + list(texts))
    files = _directory(texts).files
    files[name] = mutate_json(texts[name], rng, _WORDS)
    return Mutant(files)


def _mutate_key(key: Key, file: GgufFile, rng: random.Random) -> None:
    action = rng.randrange(8)
    if action == 0 and len(file.keys) > 1:
        file.keys.remove(key)
    elif action == 1:
        added = [f"{name}_token_id" for name in ("bos", "eos", "eot", "unknown", "padding", "mask", "seperator")]
        file.keys.append(Key(f"tokenizer.ggml.{rng.choice(added)}x"[:-1], 5, rng.choice(_IDS)))
    elif action == 2:
        file.keys.append(
            Key(f"tokenizer.chat_template.{rng.choice(['tool_use', 'rag', ''])}", STRING, rng.choice(_TEMPLATES))
        )
    elif key.kind == ARRAY:
        key.value = _mutate_array(key.value, rng)
    elif key.kind == STRING:
        key.value = rng.choice([*_PRE_TOKENIZERS, *_TEMPLATES, "llama", "gpt2", "gemma4", "bert", *_TEXTS])
    elif key.kind in NUMBER_CODES:
        key.value = rng.choice([*_IDS, *NUMBERS])


def _mutate_array(array: Array, rng: random.Random) -> Array:
    """Items exchanged for hostile ones, cut, repeated, put in another order, or read as another type."""
    items = list(array.items)
    action = rng.randrange(6)
    if action == 0:
        items = items[: rng.randrange(len(items) + 1)]
    elif action == 1:
        items += rng.choices(items or [0], k=rng.choice([1, 48]))
    elif action == 2:
        rng.shuffle(items)
    elif action == 3 and array.kind in NUMBER_CODES:
        return Array(rng.choice(list(NUMBER_CODES)), items)
    for _ in range(rng.choice([0, 1, 2, 48])):
        if items:
            items[rng.randrange(len(items))] = _item(array.kind, rng)
    return Array(array.kind, items)


def _item(kind: int, rng: random.Random) -> Any:
    return rng.choice(_TEXTS) if kind == STRING else rng.choice([*_FLOATS, *range(8), *_IDS])


def receive(path: Path, rng: random.Random) -> str:
    return outcome_of(receive_tokenizer(lambda: load_tokenizer(path)), "loaded")
