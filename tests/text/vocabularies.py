"""Small GGUF vocabularies as metadata, for tests that need no file."""

from __future__ import annotations

from typing import Any

from roseinfer.text.token_bytes import BYTE_LEVEL_ALPHABET

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]

SPM_PIECES = {
    **{char: -100.0 - i for i, char in enumerate("▁abcdehlorw=.<>/s014xé漢")},
    "▁▁": -9.0,
    "▁▁▁▁": -8.0,
    "he": -1.0,
    "ll": -2.0,
    "hell": -3.0,
    "hello": -4.0,
    "▁hello": -5.0,
    "▁w": -6.0,
    "or": -6.0,
    "ld": -6.0,
    "▁wor": -7.0,
    "▁world": -7.5,
    "aa": -3.0,
    "aaa": -3.0,
    "aaaa": -2.5,
    "ab": -4.0,
    "aba": -4.0,
    "abab": -4.0,
    "==": -1.0,
    "===": -2.0,
    "=====": -1.5,
    "wow": -0.5,  # out of reach: neither "wo" nor "ow" is a piece
    "</": -1.0,
    "</s": -1.0,
    "<0": -1.0,
    "<0x": -1.0,
    "<0x4": -1.0,
    "<0x41": -1.0,
}


def spm_metadata(**changes: Any) -> dict[str, Any]:
    """<unk> 0, <s> 1, </s> 2, byte tokens from 3, pieces, then the user-defined `<b>` and the control `<end>`."""
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *SPM_PIECES, "<b>", "<end>"]
    types = [2, 3, 3, *[6] * 256, *[1] * len(SPM_PIECES), 4, 3]
    scores = [0.0] * 259 + [*SPM_PIECES.values(), 0.0, 0.0]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return _prefixed({**metadata, **changes})


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """The 256 bytes, a few merges, then `<|bos|>` 262, `<|im_end|>` 263 (both control), `<tag>` 264 (user-defined)."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2"]
    merged = [merge.replace(" ", "") for merge in merges]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*BYTE_LEVEL_ALPHABET, *merged, "<|bos|>", "<|im_end|>", "<tag>"],
        "token_type": [1] * 262 + [3, 3, 4],
        "merges": merges,
        "bos_token_id": 262,
        "eos_token_id": 263,
    }
    return _prefixed({**metadata, **changes})


def _prefixed(metadata: dict[str, Any]) -> dict[str, Any]:
    """A value of None leaves the key out."""
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}
