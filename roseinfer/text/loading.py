"""Finds the tokenizer that belongs to a checkpoint or a path."""

from __future__ import annotations

from pathlib import Path

from roseinfer.checkpoints import Checkpoint, open_checkpoint
from roseinfer.core.errors import TokenizerError
from roseinfer.text.gguf_tokenizer import load_gguf_tokenizer
from roseinfer.text.tokenizer import Tokenizer
from roseinfer.text.tokenizer_json import load_tokenizer_json


def load_tokenizer(source: Checkpoint | str | Path) -> Tokenizer:
    """From a checkpoint, or from the path of a tokenizer.json, of a directory that has one, or of a GGUF file.

    Raises TokenizerError, naming the file, when there is no usable vocabulary.
    """
    if isinstance(source, str | Path):
        return _load_path(Path(source))
    if source.container == "gguf":
        return _load_gguf(source)
    if source.container == "hf":
        return load_tokenizer_json(source.path if source.path.is_dir() else source.path.parent)
    raise TokenizerError(f"{source.path} holds no tokenizer; name one with --tokenizer")


def _load_path(path: Path) -> Tokenizer:
    if not path.exists():
        raise TokenizerError(f"{path} does not exist; a tokenizer.json, a directory with one or a GGUF file is needed")
    if path.is_dir() or path.suffix == ".json":
        return load_tokenizer_json(path)
    with open_checkpoint(path) as checkpoint:
        return load_tokenizer(checkpoint)


def _load_gguf(checkpoint: Checkpoint) -> Tokenizer:
    try:
        return load_gguf_tokenizer(checkpoint.config)
    except TokenizerError as error:
        raise TokenizerError(f"{checkpoint.path}: {error}") from error
