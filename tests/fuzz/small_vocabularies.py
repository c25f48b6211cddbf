"""Vocabularies of 48 tokens, as GGUF metadata and as tokenizer.json files."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
_CONTROL = ["<unk>", "<s>", "</s>"]
_CHARS = "abcdehlorw1.,<>/s!é"
_MERGED = ["he", "ll", "hell", "hello", "or", "ld", "wor", "world", "aa", "aaaa", "ab", "12"]


def _padded(tokens: list[str]) -> list[str]:
    unique = list(dict.fromkeys(tokens))[:46]
    return [*unique, *(f"<unused{i}>" for i in range(46 - len(unique))), "<b>", "<|im_end|>"]


def sentencepiece_metadata() -> dict[str, Any]:
    tokens = _padded([*_CONTROL, "<0x0A>", "<0x41>", "▁", *_CHARS, *_MERGED, "▁hello", "▁wor"])
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(48)],
        "tokenizer.ggml.token_type": [2, 3, 3, 6, 6, *[1] * 41, 4, 3],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": TEMPLATE,
    }


def byte_level_metadata() -> dict[str, Any]:
    merges = ["h e", "l l", "he ll", "hell o", "o r", "l d", "w or", "a a", "aa aa", "a b", "1 2"]
    merged = [merge.replace(" ", "") for merge in merges]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": _padded([*_CONTROL, "Ġ", "Ċ", *_CHARS, *merged, "2"]),
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 43, 4, 3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 47,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def gemma4_metadata() -> dict[str, Any]:
    changes = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": sentencepiece_metadata()["tokenizer.ggml.tokens"],
    }
    return byte_level_metadata() | changes | {"tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o"]}


# -- tokenizer.json -----------------------------------------------------------------------------------------------


def tokenizer_files() -> list[dict[str, str]]:
    """Directories of each model and of most parts that the library knows: file name → text."""
    return [_directory(library) for library in (_byte_level(), _byte_fallback(), _unigram(), _word_piece())]


def _directory(library: Tokenizer) -> dict[str, str]:
    library.add_special_tokens([AddedToken(text, special=True) for text in [*_CONTROL, "<|im_end|>"]])
    library.add_tokens([AddedToken("<b>", lstrip=True, single_word=True)])
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": None,
        "add_bos_token": True,
        "chat_template": TEMPLATE,
        "extra_special_tokens": {"image_token": "<b>"},
    }
    return {
        "tokenizer.json": library.to_str(),
        "tokenizer_config.json": json.dumps(config),
        "special_tokens_map.json": json.dumps({"unk_token": "<unk>"}),
        "generation_config.json": json.dumps({"eos_token_id": [1, 2]}),
    }


def _byte_level() -> Tokenizer:
    metadata = byte_level_metadata()
    vocabulary = {text: i for i, text in enumerate(metadata["tokenizer.ggml.tokens"][:46])}
    merges = [tuple(merge.split()) for merge in metadata["tokenizer.ggml.merges"]]
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    split = pre_tokenizers.Split(pre_tokenizers_pattern(), "isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.Digits(True), byte_level])
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    library.enable_truncation(10)
    return library


def pre_tokenizers_pattern() -> Any:
    from tokenizers import Regex

    return Regex(r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|[^\s\p{L}\p{N}]+")


def _byte_fallback() -> Tokenizer:
    tokens = sentencepiece_metadata()["tokenizer.ggml.tokens"][:46]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o")]
    vocabulary = {text: i for i, text in enumerate(tokens)}
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(steps)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    library.enable_padding(length=12)
    return library


def _unigram() -> Tokenizer:
    tokens = sentencepiece_metadata()["tokenizer.ggml.tokens"][:46]
    library = Tokenizer(models.Unigram([(text, -float(i)) for i, text in enumerate(tokens)], 0, False))
    library.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    library.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    library.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    return library


def _word_piece() -> Tokenizer:
    words = ["[UNK]", *_CONTROL, "hello", "world", "##ld", "##s", *_CHARS]
    library = Tokenizer(models.WordPiece({text: i for i, text in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    library.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 1))
    return library
