"""Tokenizers from Hugging Face files: tokenizer.json, and what the files beside it say about its special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roseinfer.core.errors import TokenizerError
from roseinfer.text.end_tokens import find_end_ids
from roseinfer.text.library_encoder import LibraryEncoder, library_errors
from roseinfer.text.template_sources import build_chat_template, directory_templates
from roseinfer.text.token_bytes import TokenDecoder, parse_decoder
from roseinfer.text.tokenizer import Tokenizer
from roseinfer.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

_MAX_VOCAB_SIZE = 1 << 22
_PROBE = "a"


def load_tokenizer_json(path: Path) -> Tokenizer:
    """`path` is a tokenizer.json, or a directory with one. Raises TokenizerError if it is missing or unusable."""
    file = path / "tokenizer.json" if path.is_dir() else path
    library = _read_library(file)
    settings = _Settings(file.parent, library)
    with library_errors(f"{file} cannot be used"):
        return _build(library, settings)


def _read_library(file: Path) -> LibraryTokenizer:
    from tokenizers import Tokenizer

    if not file.is_file():
        raise TokenizerError(f"{file} does not exist; a tokenizer.json is needed")
    with library_errors(f"{file} is no usable tokenizer.json"):
        return Tokenizer.from_file(str(file))


def _build(library: LibraryTokenizer, settings: _Settings) -> Tokenizer:
    control_names = settings.control_names
    encoder = LibraryEncoder(library, control_names)
    prefix_ids = _prefix_ids(library)
    bos_id = settings.bos_id if settings.bos_id is not None else next(iter(prefix_ids), None)
    decoder = parse_decoder(_state(library.decoder))
    add_bos = settings.add_bos
    return Tokenizer(
        encoder,
        _vocabulary(library, decoder, settings.end_ids),
        bos_id=bos_id,
        eos_ids=settings.end_ids,
        pad_id=settings.pad_id,
        prefix_ids=prefix_ids or ([] if bos_id is None else [bos_id]),
        add_prefix=bool(prefix_ids) if add_bos is None else add_bos,
        strip_space=decoder.strip_space,
        chat_template=build_chat_template(
            settings.chat_templates, tokens=settings.template_tokens, control_names=control_names
        ),
    )


def _vocabulary(library: LibraryTokenizer, decoder: TokenDecoder, end_ids: Iterable[int]) -> Vocabulary:
    added = library.get_added_tokens_decoder()

    def read_token(token_id: int) -> bytes:
        text = library.id_to_token(token_id)
        if text is None:
            return b""
        return decoder.added_to_bytes(text) if token_id in added else decoder.to_bytes(text)

    special_ids = [token_id for token_id, token in added.items() if token.special]
    return Vocabulary(_vocab_size(library), read_token, [*special_ids, *end_ids])


def _vocab_size(library: LibraryTokenizer) -> int:
    """The number of tokens, or more where ids are left out."""
    size = max(library.get_vocab_size(), 1 + max(library.get_added_tokens_decoder(), default=0))
    if library.id_to_token(size) is not None:  # to ask for all of them takes as long as to read the file
        size = 1 + max(library.get_vocab().values())
    if size > _MAX_VOCAB_SIZE:
        raise TokenizerError(f"the tokenizer has ids up to {size - 1}; at most {_MAX_VOCAB_SIZE} are supported")
    return size


def _state(part: Any) -> Any:
    """The JSON of a part of the library's tokenizer; reading the whole file again would take longer."""
    return None if part is None else json.loads(part.__getstate__())


def _prefix_ids(library: LibraryTokenizer) -> list[int]:
    """What the file's post-processor puts before every text."""
    plain = library.encode(_PROBE, add_special_tokens=False).ids
    full = library.encode(_PROBE).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return _known(full[:start], library)
    return []


def _known(ids: list[int], library: LibraryTokenizer) -> list[int]:
    """A post-processor's ids need not be those of any token."""
    for token_id in ids:
        if library.id_to_token(token_id) is None:
            raise TokenizerError(f"the post-processor adds the id {token_id}, which the tokenizer does not know")
    return ids


class _Settings:
    """What tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json say."""

    def __init__(self, directory: Path, library: LibraryTokenizer) -> None:
        self._directory = directory
        self._library = library
        self._tokenizer = {
            **_read_json(directory / "special_tokens_map.json"),
            **_read_json(directory / "tokenizer_config.json"),
        }
        self._generation = _read_json(directory / "generation_config.json")
        self._model = _read_json(directory / "config.json")

    @property
    def add_bos(self) -> bool | None:
        """None leaves it to the post-processor."""
        add_bos = self._tokenizer.get("add_bos_token")
        return add_bos if isinstance(add_bos, bool) else None

    @property
    def bos_id(self) -> int | None:
        return next(iter([*self._named("bos_token"), *self._numbered("bos_token_id")]), None)

    @property
    def pad_id(self) -> int | None:
        return next(iter(self._named("pad_token")), None)

    @property
    def end_ids(self) -> list[int]:
        added = self._library.get_added_tokens_decoder()
        special = {token.content: token_id for token_id, token in added.items() if token.special}
        return [*self._numbered("eos_token_id"), *self._named("eos_token"), *find_end_ids(special)]

    @property
    def control_names(self) -> list[str]:
        """The texts of added tokens that are special or end a generation."""
        end_ids = set(self.end_ids)
        added = self._library.get_added_tokens_decoder()
        return [token.content for token_id, token in added.items() if token.special or token_id in end_ids]

    @property
    def chat_templates(self) -> dict[str, str]:
        return directory_templates(self._directory, self._tokenizer)

    @property
    def template_tokens(self) -> dict[str, str]:
        """The texts of special tokens by the names that templates use: bos_token, eos_token, ..."""
        extra = self._tokenizer.get("extra_special_tokens")
        given = {**(extra if isinstance(extra, dict) else {}), **self._tokenizer}
        texts = {key: _token_text(value) for key, value in given.items() if key.endswith("_token")}
        return {key: text for key, text in texts.items() if text is not None}

    def _named(self, key: str) -> list[int]:
        """Of a token given by its text, or by an object with `content`."""
        text = _token_text(self._tokenizer.get(key))
        token_id = None if text is None else self._library.token_to_id(text)
        return [] if token_id is None else [token_id]

    def _numbered(self, key: str) -> list[int]:
        """Of ids in generation_config.json, or else in config.json: one or a list."""
        ids = self._generation.get(key, self._model.get(key))
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        for token_id in ids:
            if type(token_id) is not int or not 0 <= token_id < _vocab_size(self._library):
                raise TokenizerError(f"{key} is {token_id!r}, which the tokenizer does not know")
        return ids


def _token_text(token: Any) -> str | None:
    """Of a token as the files write it: its text, or an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(file: Path) -> Mapping[str, Any]:
    """An object, empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise TokenizerError(f"{file} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} holds no JSON object")
    return value
