"""Where chat templates come from: GGUF metadata, tokenizer_config.json and files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from roseinfer.core.errors import TokenizerError
from roseinfer.text import Tokenizer, load_tokenizer
from roseinfer.text.gguf_tokenizer import load_gguf_tokenizer
from tests.text.vocabularies import byte_level_metadata

FOLDER = Path(__file__).parent / "chat_templates"
HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def write(folder: Path, config: dict[str, Any] | None = None, **files: str) -> Path:
    library = Library(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2, "Hello": 3}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["<s>", "</s>"])
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    for name, source in files.items():
        file = folder / (f"additional_chat_templates/{name}.jinja" if name != "default" else "chat_template.jinja")
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
    return folder


def rendered(tokenizer: Tokenizer, **options: Any) -> str:
    assert tokenizer.chat_template is not None
    return tokenizer.chat_template.render(HELLO, **options).text


def test_a_directory_without_a_template(tmp_path: Path) -> None:
    assert load_tokenizer(write(tmp_path)).chat_template is None


@pytest.mark.parametrize(
    ("config", "files", "plain", "with_tools"),
    [
        ({"chat_template": "a"}, {}, "a", "a"),
        ({"chat_template": [{"name": "default", "template": "a"}]}, {}, "a", "a"),
        (
            {"chat_template": [{"name": n, "template": n} for n in ("tool_use", "default", "rag")]},
            {},
            "default",
            "tool_use",
        ),
        ({"chat_template": "a"}, {"default": "b"}, "b", "b"),
        ({}, {"default": "b", "tool_use": "c", "rag": "d"}, "b", "c"),
    ],
)
def test_directories(
    tmp_path: Path, config: dict[str, Any], files: dict[str, str], plain: str, with_tools: str
) -> None:
    tokenizer = load_tokenizer(write(tmp_path, config, **files))
    assert rendered(tokenizer) == plain
    assert rendered(tokenizer, tools=TOOLS) == with_tools


def test_no_default_template(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "rag", "template": "a"}]}
    assert load_tokenizer(write(tmp_path, config)).chat_template is None


def test_names_of_special_tokens(tmp_path: Path) -> None:
    config = {
        "chat_template": "{{ bos_token }}{{ eos_token }}{{ image_token }}{{ pad_token }}",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "pad_token": None,
        "extra_special_tokens": {"image_token": "<i>"},
    }
    tokenizer = load_tokenizer(write(tmp_path, config))
    assert rendered(tokenizer) == "<s></s><i>"
    assert tokenizer.chat_template is not None
    segments = tokenizer.chat_template.render([{"role": "user", "content": "<s>"}]).segments
    assert tokenizer.encode_segments(segments)[:2] == [1, 2]


@pytest.mark.parametrize("name", ["chatml", "qwen2_5", "llama3_1", "zephyr"])
def test_ids_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    folder = write(tmp_path, config, default=(FOLDER / f"{name}.jinja").read_text())
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **config)
    theirs.chat_template = (folder / "chat_template.jinja").read_text()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template is not None
    messages = [{"role": "system", "content": "Hello"}, *HELLO, {"role": "assistant", "content": "Hello"}, *HELLO]
    ids = tokenizer.encode_segments(tokenizer.chat_template.render(messages, tools=TOOLS).segments)
    assert ids == theirs.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize(
    "config",
    [
        {"chat_template": 1},
        {"chat_template": [1]},
        {"chat_template": [{"name": "a"}]},
        {"chat_template": "a" * (2 << 20)},
    ],
)
def test_broken_configs(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"chat_template of tokenizer_config\.json"):
        load_tokenizer(write(tmp_path, config))


def test_broken_files(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja cannot be read"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").write_bytes(b"a" * (2 << 20))
    with pytest.raises(TokenizerError, match="larger than"):
        load_tokenizer(folder)


def test_a_faulty_template_does_not_keep_the_model_from_loading(tmp_path: Path) -> None:
    assert load_tokenizer(write(tmp_path, {"chat_template": "{% for %}"})).chat_template is not None


def gguf(**changes: Any) -> Tokenizer:
    return load_gguf_tokenizer({**byte_level_metadata(), **changes})


def test_gguf() -> None:
    assert gguf().chat_template is None
    tokenizer = gguf(**{"tokenizer.chat_template": "{{ bos_token }}a{{ eos_token }}{{ unk_token }}"})
    assert rendered(tokenizer) == "<|bos|>a<|im_end|>"
    tokenizer = gguf(
        **{
            "tokenizer.chat_templates": ["tool_use", "rag"],
            "tokenizer.chat_template": "a",
            "tokenizer.chat_template.tool_use": "b",
            "tokenizer.chat_template.rag": "c",
        }
    )
    assert (rendered(tokenizer), rendered(tokenizer, tools=TOOLS)) == ("a", "b")
    assert tokenizer.chat_template is not None
    assert (tokenizer.chat_template.source, tokenizer.chat_template.tool_source) == ("a", "b")


@pytest.mark.parametrize("source", [1, ["a"], "a" * (2 << 20)])
def test_broken_gguf(source: Any) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.chat_template"):
        gguf(**{"tokenizer.chat_template": source})


def test_real_models(smollm2_path: Path, gemma3_path: Path) -> None:
    assert rendered(load_tokenizer(smollm2_path)) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert load_tokenizer(gemma3_path).chat_template is None
