"""Chat templates to dialects, and the special tokens among a dialect's markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from roseinfer.text.gguf_tokenizer import TokenType, load_gguf_tokenizer
from roseinfer.text.tool_dialects import dialect_names, find_dialect, find_special_markers, load_dialect
from tests.text.tool_dialects.answers import TWO_CALLS
from tests.text.vocabularies import byte_level_metadata

TEMPLATES = Path(__file__).parent.parent / "chat_templates"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("hermes", "hermes"),
        ("qwen2_5", "hermes"),
        ("qwen3", "hermes"),
        ("llama3_1", "llama3_json"),
        ("llama3_2_pythonic", "pythonic"),
        ("mistral_v3", "mistral"),
        ("mistral_v7", "mistral"),
        ("deepseek_r1", "deepseek_v3"),
        ("chatml", None),
        ("gemma3", None),
        ("phi4", None),
        ("zephyr", None),
    ],
)
def test_templates_of_models(template: str, name: str | None) -> None:
    source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    assert find_dialect(source) is (load_dialect(name) if name else None)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("{% if tools %}<tool_call>\n<function=f>\n<parameter=a>", "qwen3_coder"),
        ("{%- for tool in tools %}[AVAILABLE_TOOLS]{{ tool }}{% endfor %}[TOOL_CALLS]f[ARGS]{}", "mistral_v11"),
        ("{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>' }}", "deepseek_v3_1"),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", "generic"),
        ("{{ messages[0].content }} has no tools", None),
        ("", None),
    ],
)
def test_the_most_specific_dialect_wins(source: str, name: str | None) -> None:
    assert find_dialect(source) is (load_dialect(name) if name else None)


def test_every_dialect_has_its_answers() -> None:
    assert set(dialect_names()) == set(TWO_CALLS)


def test_what_may_be_special_tokens() -> None:
    assert {name for name in dialect_names() if not load_dialect(name).needs_special_tokens} == {"generic"}


def test_markers_that_are_special_tokens() -> None:
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.tokens"] += ["<tool_call>", "</tool_call>"]
    metadata["tokenizer.ggml.token_type"] += [TokenType.CONTROL, TokenType.USER_DEFINED]
    tokenizer = load_gguf_tokenizer(metadata)
    markers = load_dialect("hermes").markers
    assert find_special_markers(tokenizer, markers) == {
        "<tool_call>": metadata["tokenizer.ggml.tokens"].index(markers[0])
    }
