"""Token text → bytes, one function per way in which vocabularies write bytes down.

Decoding a sequence is then nothing but joining bytes, which is exact, and as easy for a stream as for a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from roseinfer.core.errors import TokenizerError

SPACE_MARK = "▁"  # U+2581, SentencePiece's visible space

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

TextToBytes = Callable[[str], bytes]
TextToText = Callable[[str], str]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [b for b in range(256) if b not in printable]
    alphabet = {chr(b): b for b in printable}
    alphabet.update({chr(0x100 + i): b for i, b in enumerate(others)})
    return alphabet


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


def replace_surrogates(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot express, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def verbatim(text: str) -> bytes:
    """The token is its own text."""
    return replace_surrogates(text).encode()


def byte_level(text: str) -> bytes:
    """GPT-2 style; a token with a character outside the alphabet is text as it stands."""
    try:
        return bytes([BYTE_LEVEL_ALPHABET[char] for char in text])
    except KeyError:
        return verbatim(text)


def byte_token(text: str) -> int | None:
    """The byte that a SentencePiece byte token such as `<0x0A>` stands for."""
    match = _BYTE_TOKEN.fullmatch(text)
    return int(match[1], 16) if match else None


def sentencepiece(text: str) -> bytes:
    """`▁` is a space; `<0xXX>` is a byte."""
    byte = byte_token(text)
    return verbatim(text.replace(SPACE_MARK, " ")) if byte is None else bytes([byte])


@dataclass(frozen=True)
class TokenDecoder:
    """How a tokenizer.json writes tokens. `strip_space`: the text's first space belongs to the encoding."""

    to_bytes: TextToBytes
    added_to_bytes: TextToBytes
    strip_space: bool = False


def parse_decoder(decoder: Mapping[str, Any] | None) -> TokenDecoder:
    """From the `decoder` object of a tokenizer.json.

    Raises TokenizerError for decoders whose tokens have no bytes of their own (CTC, regular expressions).
    """
    if decoder is None:  # the library joins with spaces
        return _spaced(lambda text: " " + text)
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return _parse_steps([step for step in steps if step["type"] != "Fuse"])


def _parse_steps(steps: list[Mapping[str, Any]]) -> TokenDecoder:
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel"}:
        return TokenDecoder(byte_level, verbatim)
    if kinds == ["WordPiece"]:
        return _spaced(_word_piece(steps[0]))
    if set(kinds) <= {"Replace", "ByteFallback", "Strip", "Metaspace"}:
        return _parse_sentencepiece(steps)
    raise TokenizerError(f"tokenizer.json has a decoder that is not supported: {' + '.join(kinds)}")


def _spaced(rewrite: TextToText) -> TokenDecoder:
    def to_bytes(text: str) -> bytes:
        return verbatim(rewrite(text))

    return TokenDecoder(to_bytes, to_bytes, strip_space=True)


def _word_piece(step: Mapping[str, Any]) -> TextToText:
    prefix, cleanup = step.get("prefix", "##"), step.get("cleanup", True)

    def rewrite(text: str) -> str:
        text = text[len(prefix) :] if text.startswith(prefix) else " " + text
        return _clean_up(text) if cleanup else text

    return rewrite


def _clean_up(text: str) -> str:
    for mark in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(" " + mark, mark)
    return text.replace(" do not", " don't")


def _parse_sentencepiece(steps: list[Mapping[str, Any]]) -> TokenDecoder:
    rewrites = [_replacement(step) for step in steps if step["type"] in ("Replace", "Metaspace")]
    has_bytes = any(step["type"] == "ByteFallback" for step in steps)

    def to_bytes(text: str) -> bytes:
        byte = byte_token(text) if has_bytes else None
        if byte is not None:
            return bytes([byte])
        for old, new in rewrites:
            text = text.replace(old, new)
        return verbatim(text)

    return TokenDecoder(to_bytes, to_bytes, strip_space=any(_strips_space(step) for step in steps))


def _replacement(step: Mapping[str, Any]) -> tuple[str, str]:
    if step["type"] == "Metaspace":
        return step.get("replacement", SPACE_MARK), " "
    pattern = step["pattern"].get("String")
    if not pattern:
        raise TokenizerError("tokenizer.json has a decoder that is not supported: Replace with a regular expression")
    return pattern, step["content"]


def _strips_space(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True))
    if step["type"] != "Strip":
        return False
    if (step["content"], step["start"], step["stop"]) != (" ", 1, 0):
        raise TokenizerError(f"tokenizer.json has a decoder that is not supported: {step}")
    return True
