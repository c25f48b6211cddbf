"""A tokenizer.json whose tokens are the 256 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def save_byte_tokenizer(directory: Path, special_tokens: Sequence[str] = ()) -> Path:
    """`special_tokens` get the ids behind the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(list(special_tokens))
    path = directory / "tokenizer.json"
    bytes_only.save(str(path))
    return path
