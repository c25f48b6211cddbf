"""Tokenizers from the metadata of a GGUF file (`tokenizer.ggml.*`).

Vocabulary models: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE with scores) and "gemma4" (merges over
SentencePiece text). Meaning of the keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from roseinfer.core.errors import TokenizerError
from roseinfer.text.end_tokens import find_end_ids
from roseinfer.text.library_encoder import LibraryEncoder, library_errors
from roseinfer.text.pre_tokenizers import find_pre_tokenizer
from roseinfer.text.spm import SentencePieceEncoder, find_byte_ids
from roseinfer.text.template_sources import build_chat_template, gguf_templates
from roseinfer.text.token_bytes import SPACE_MARK, byte_level, sentencepiece, verbatim
from roseinfer.text.tokenizer import Encoder, Tokenizer
from roseinfer.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

Metadata = Mapping[str, Any]


class TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_SPECIAL_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.UNUSED)
_TEMPLATE_TOKENS = {  # what templates call them, and what GGUF does
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "mask_token": "mask",
}


class GgufTokens:
    """The file's tokens, checked: texts are strings and unique, there is a type for each."""

    def __init__(self, metadata: Metadata) -> None:
        self.texts = _strings(metadata, "tokens")
        self.ids = dict(zip(self.texts, range(len(self.texts)), strict=True))
        if len(self.ids) != len(self.texts):
            twice = next(text for i, text in enumerate(self.texts) if self.ids[text] != i)
            raise TokenizerError(f"tokenizer.ggml.tokens has {twice!r} more than once")
        self._types = self._read_types(metadata)

    def _read_types(self, metadata: Metadata) -> npt.NDArray[np.int64]:
        if "tokenizer.ggml.token_type" not in metadata:
            return np.full(len(self.texts), TokenType.NORMAL)
        types = _numbers(metadata, "token_type", len(self.texts))
        if not np.issubdtype(types.dtype, np.integer):
            raise TokenizerError("tokenizer.ggml.token_type holds something else than integers")
        return types

    def of_types(self, *types: TokenType) -> dict[str, int]:
        """The ids of all tokens of these types, by text."""
        return {self.texts[i]: i for i in np.flatnonzero(np.isin(self._types, types)).tolist()}

    def mark_control(self, ids: Iterable[int]) -> None:
        """Some files have their end tokens as user-defined text."""
        self._types[list(ids)] = TokenType.CONTROL

    def reader(self, read_text: Callable[[str], bytes]) -> Callable[[int], bytes]:
        """Bytes of an id: `read_text` knows how ordinary tokens are written, all others are their own text."""
        texts = self.texts  # and not `self`, whose table of ids is needed no longer
        own_text = np.isin(self._types, (TokenType.NORMAL, TokenType.BYTE), invert=True)

        def read_token(token_id: int) -> bytes:
            return (verbatim if own_text[token_id] else read_text)(texts[token_id])

        return read_token


def load_gguf_tokenizer(metadata: Metadata) -> Tokenizer:
    """`metadata` holds a GGUF file's values by key. Raises TokenizerError for a vocabulary we cannot use."""
    model = _text(metadata, "model", "")
    builders = {"gpt2": _build_byte_level, "llama": _build_sentencepiece, "gemma4": _build_gemma4}
    if model not in builders:
        known = ", ".join(builders)
        raise TokenizerError(
            f"the GGUF vocabulary model {model!r} is not supported (tokenizer.ggml.model; known: {known})"
        )
    tokens = GgufTokens(metadata)
    tokens.mark_control(_named_end_ids(tokens))
    return builders[model](tokens, metadata)


def _build_byte_level(tokens: GgufTokens, metadata: Metadata) -> Tokenizer:
    spec = find_pre_tokenizer(_text(metadata, "pre", "default"))
    with library_errors("the GGUF vocabulary cannot be used"):
        library = _library_tokenizer(tokens, metadata, ignore_merges=spec.ignore_merges)
        library.pre_tokenizer = spec.build()
    return _tokenizer(tokens, metadata, LibraryEncoder(library), byte_level, add_bos=spec.add_bos)


def _build_gemma4(tokens: GgufTokens, metadata: Metadata) -> Tokenizer:
    from tokenizers import Regex
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import Split

    with library_errors("the GGUF vocabulary cannot be used"):
        library = _library_tokenizer(tokens, metadata, byte_fallback=True)
        library.normalizer = Replace(" ", SPACE_MARK)
        library.pre_tokenizer = Split(Regex("\n+"), "isolated")  # no piece mixes newlines with anything else
    return _tokenizer(tokens, metadata, LibraryEncoder(library), sentencepiece, add_bos=True)


def _library_tokenizer(tokens: GgufTokens, metadata: Metadata, **options: bool) -> LibraryTokenizer:
    """Merges and added tokens; how text is prepared is the caller's."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

    library = Tokenizer(BPE(vocab=tokens.ids, merges=_pairs(_strings(metadata, "merges")), **options))
    control = tokens.of_types(TokenType.CONTROL, TokenType.UNKNOWN)
    library.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    added = tokens.of_types(TokenType.USER_DEFINED)
    library.add_tokens([AddedToken(text, normalized=False) for text in added])
    return library


def _pairs(merges: list[str]) -> list[tuple[str, str]]:
    """`["a b", ...]` → `[("a", "b"), ...]`, split all at once."""
    if set(map(str.count, merges, itertools.repeat(" "))) != {1}:
        raise TokenizerError("tokenizer.ggml.merges holds something else than pairs")
    halves = " ".join(merges).split(" ")
    return list(zip(halves[::2], halves[1::2], strict=True))


def _build_sentencepiece(tokens: GgufTokens, metadata: Metadata) -> Tokenizer:
    if not np.isfinite(_numbers(metadata, "scores", len(tokens.texts))).all():
        raise TokenizerError("tokenizer.ggml.scores holds something else than finite numbers")
    control = tokens.of_types(TokenType.CONTROL, TokenType.UNKNOWN)
    add_space_prefix = _flag(metadata, "add_space_prefix", True)
    encoder = SentencePieceEncoder(
        tokens.ids,
        metadata["tokenizer.ggml.scores"],
        hidden_ids={*control.values(), *tokens.of_types(TokenType.BYTE, TokenType.UNUSED).values()},
        added=tokens.of_types(TokenType.USER_DEFINED),
        control=control,
        byte_ids=find_byte_ids(tokens.ids, _id(metadata, "unknown", len(tokens.texts))),
        add_space_prefix=add_space_prefix,
    )
    return _tokenizer(tokens, metadata, encoder, sentencepiece, add_bos=True, strip_space=add_space_prefix)


def _tokenizer(
    tokens: GgufTokens,
    metadata: Metadata,
    encoder: Encoder,
    read_text: Callable[[str], bytes],
    *,
    add_bos: bool,
    strip_space: bool = False,
) -> Tokenizer:
    size = len(tokens.texts)
    end_ids = _end_ids(tokens, metadata)
    bos_id = _id(metadata, "bos", size)
    special_ids = {*tokens.of_types(*_SPECIAL_TYPES).values(), *end_ids}
    return Tokenizer(
        encoder,
        Vocabulary(size, tokens.reader(read_text), special_ids),
        bos_id=bos_id,
        eos_ids=end_ids,
        pad_id=_pad_id(metadata, size),
        prefix_ids=() if bos_id is None else (bos_id,),
        add_prefix=_flag(metadata, "add_bos_token", add_bos),
        strip_space=strip_space,
        max_token_chars=max(map(len, tokens.texts)),
        chat_template=build_chat_template(
            gguf_templates(metadata),
            tokens=_template_tokens(tokens, metadata, end_ids),
            control_names=tokens.of_types(TokenType.CONTROL, TokenType.UNKNOWN),
        ),
    )


def _template_tokens(tokens: GgufTokens, metadata: Metadata, end_ids: list[int]) -> dict[str, str]:
    """The texts of special tokens by the names that templates use; ids that are none are left out."""
    names = {"eos_token": tokens.texts[end_ids[0]]} if end_ids else {}
    for name, key in _TEMPLATE_TOKENS.items():
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(token_id) is int and 0 <= token_id < len(tokens.texts):
            names[name] = tokens.texts[token_id]
    return names


def _named_end_ids(tokens: GgufTokens) -> list[int]:
    """Control tokens by their names; user-defined ones too, save for Gemma's HTML tag `</s>`."""
    user_defined = tokens.of_types(TokenType.USER_DEFINED)
    user_defined.pop("</s>", None)
    return find_end_ids({**user_defined, **tokens.of_types(TokenType.CONTROL)})


def _end_ids(tokens: GgufTokens, metadata: Metadata) -> list[int]:
    given = [_id(metadata, name, len(tokens.texts)) for name in ("eos", "eot", "eom")]
    return [*(token_id for token_id in given if token_id is not None), *_named_end_ids(tokens)]


def _id(metadata: Metadata, name: str, size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    token_id = metadata.get(key)
    if token_id is None:
        return None
    if type(token_id) is not int or not 0 <= token_id < size:
        raise TokenizerError(f"{key} is {token_id!r}, which is no id of a vocabulary of {size}")
    return token_id


def _pad_id(metadata: Metadata, size: int) -> int | None:
    """Nothing is ever padded here, and files write -1 for none."""
    token_id = metadata.get("tokenizer.ggml.padding_token_id")
    return token_id if type(token_id) is int and 0 <= token_id < size else None


def _strings(metadata: Metadata, name: str) -> list[str]:
    strings = _array(metadata, name)
    if set(map(type, strings)) != {str}:
        raise TokenizerError(f"tokenizer.ggml.{name} is empty or holds something else than strings")
    return strings


def _array(metadata: Metadata, name: str, length: int | None = None) -> list[Any]:
    array = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(array, list):
        raise TokenizerError(f"the GGUF file has no array tokenizer.ggml.{name}")
    if length is not None and len(array) != length:
        raise TokenizerError(f"tokenizer.ggml.{name} has {len(array)} entries for {length} tokens")
    return array


def _numbers(metadata: Metadata, name: str, length: int) -> npt.NDArray[Any]:
    try:
        numbers = np.asarray(_array(metadata, name, length))
    except (ValueError, OverflowError) as error:
        raise TokenizerError(f"tokenizer.ggml.{name} holds something else than numbers") from error
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.number):
        raise TokenizerError(f"tokenizer.ggml.{name} holds something else than numbers")
    return numbers


def _flag(metadata: Metadata, name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise TokenizerError(f"tokenizer.ggml.{name} is {value!r}, not true or false")
    return value


def _text(metadata: Metadata, name: str, default: str) -> str:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, str):
        raise TokenizerError(f"tokenizer.ggml.{name} is {value!r}, not a string")
    return value
