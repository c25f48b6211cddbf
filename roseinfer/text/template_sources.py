"""Where models keep their chat templates: in a GGUF file's metadata, or in the files beside a tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from roseinfer.core.errors import TokenizerError
from roseinfer.text.chat_template import ChatTemplate

_MAX_TEMPLATE_SIZE = 1 << 20
_GGUF_KEY = "tokenizer.chat_template"


def build_chat_template(
    sources: Mapping[str, str], *, tokens: Mapping[str, str], control_names: Iterable[str]
) -> ChatTemplate | None:
    """`sources` by name: "default" is needed, "tool_use" is for requests with tools, all others are not used."""
    if "default" not in sources:
        return None
    return ChatTemplate(
        sources["default"],
        tool_source=sources.get("tool_use"),
        bos_token=tokens.get("bos_token", ""),
        eos_token=tokens.get("eos_token", ""),
        tokens=tokens,
        control_names=control_names,
    )


def gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """By name, from `tokenizer.chat_template` and `tokenizer.chat_template.NAME`. Raises TokenizerError."""
    sources = {}
    for key, source in metadata.items():
        if key == _GGUF_KEY:
            sources["default"] = _checked(source, key)
        elif key.startswith(_GGUF_KEY + "."):
            sources[key.removeprefix(_GGUF_KEY + ".")] = _checked(source, key)
    return sources


def directory_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """By name, from `chat_template` in tokenizer_config.json, overruled by *.jinja files. Raises TokenizerError."""
    sources = _config_templates(config.get("chat_template"))
    files = {"default": directory / "chat_template.jinja"}
    files.update({file.stem: file for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))})
    for name, file in files.items():
        if file.is_file():
            sources[name] = _read(file)
    return sources


def _config_templates(value: Any) -> dict[str, str]:
    where = "chat_template of tokenizer_config.json"
    if value is None:
        return {}
    if not isinstance(value, list):
        return {"default": _checked(value, where)}
    if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in value):
        raise TokenizerError(f"{where} must be a string or a list of objects with name and template")
    return {entry["name"]: _checked(entry.get("template"), where) for entry in value}


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_TEMPLATE_SIZE:
            raise TokenizerError(f"{file} is larger than {_MAX_TEMPLATE_SIZE} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{file} cannot be read: {error}") from error


def _checked(source: Any, where: str) -> str:
    if not isinstance(source, str):
        raise TokenizerError(f"{where} is no string")
    if len(source) > _MAX_TEMPLATE_SIZE:
        raise TokenizerError(f"{where} has more than {_MAX_TEMPLATE_SIZE} characters")
    return source
