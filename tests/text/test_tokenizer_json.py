"""Tokenizers from Hugging Face files, made here with the `tokenizers` library; and how a source is found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from roseinfer.checkpoints import Checkpoint, open_checkpoint
from roseinfer.core.errors import TokenizerError
from roseinfer.text import Tokenizer, load_tokenizer
from tests.text.vocabularies import spm_metadata
from tests.writers import write_gguf

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Pack my box with five dozen liquor jugs, won't you?",
    "Ünïcödé: naïve café 漢字 🤗 — don't panic!",
] * 5
PLAIN_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<"), max_size=40)


def byte_level() -> Library:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    library.train_from_iterator(SENTENCES, trainer)
    library.add_tokens([AddedToken("<é>", normalized=False)])
    return library


def sentencepiece_like(decoder: decoders.Decoder) -> Library:
    """As Llama's and Gemma's: `▁` for spaces, byte tokens for what is not in the vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmno", "▁a", "ab"]
    vocab = {token: i for i, token in enumerate(tokens)}
    library = Library(models.BPE(vocab, [("▁", "a"), ("a", "b")], byte_fallback=True, unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoder
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return library


def llama_decoder() -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(steps)


def write(folder: Path, library: Library, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Library]:
    library = byte_level()
    folder = write(tmp_path_factory.mktemp("gpt"), library, tokenizer_config={"eos_token": "<|endoftext|>"})
    return load_tokenizer(folder), library


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Library]:
    library = sentencepiece_like(llama_decoder())
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    return load_tokenizer(write(tmp_path_factory.mktemp("llama"), library, tokenizer_config=config)), library


@given(text=PLAIN_TEXTS)
def test_byte_level_round_trip(gpt: tuple[Tokenizer, Library], text: str) -> None:
    tokenizer, library = gpt
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


@given(ids=st.lists(st.integers(0, 399), max_size=30))
def test_byte_level_decode_equals_the_library(gpt: tuple[Tokenizer, Library], ids: list[int]) -> None:
    tokenizer, library = gpt
    ids = [token_id for token_id in ids if token_id != library.token_to_id("<é>")]  # which the library spoils
    assert tokenizer.decode(ids) == library.decode(ids)
    assert tokenizer.decode(ids, skip_special=False) == library.decode(ids, skip_special_tokens=False)


@given(text=PLAIN_TEXTS)
def test_sentencepiece_round_trip(llama: tuple[Tokenizer, Library], text: str) -> None:
    tokenizer, library = llama
    ids = tokenizer.encode(text)
    assert ids == library.encode(text).ids
    assert tokenizer.decode(ids) == text == library.decode(ids)


@given(chunks=st.lists(st.lists(st.integers(0, 280), max_size=3), max_size=20), continuation=st.booleans())
def test_streams_join_to_decode(llama: tuple[Tokenizer, Library], chunks: list[list[int]], continuation: bool) -> None:
    stream = llama[0].detokenizer(continuation=continuation)
    text = "".join([stream.push(chunk) for chunk in chunks]) + stream.finish()
    ids = [token_id for chunk in chunks for token_id in chunk]
    assert text == llama[0].decode(ids, continuation=continuation)


def test_added_tokens_are_their_own_text(gpt: tuple[Tokenizer, Library]) -> None:
    """é is also a letter of the byte-level alphabet, but not here."""
    tokenizer, _ = gpt
    ids = tokenizer.encode("a<é>b")
    assert [tokenizer.token_bytes(i) for i in ids] == [b"a", "<é>".encode(), b"b"]


def test_special_tokens_as_text(gpt: tuple[Tokenizer, Library]) -> None:
    tokenizer, _ = gpt
    assert tokenizer.encode("<|im_end|>") == [1]
    ids = tokenizer.encode("<|im_end|>", parse_special=False)
    assert 1 not in ids
    assert tokenizer.decode(ids) == "<|im_end|>"
    assert tokenizer.encode("<|im_end|>") == [1]


def test_special_ids(gpt: tuple[Tokenizer, Library], llama: tuple[Tokenizer, Library]) -> None:
    assert gpt[0].eos_ids == (0, 1)
    assert gpt[0].bos_id is None
    assert gpt[0].encode_prompt("") == [0]
    assert llama[0].eos_ids == (2,)
    assert llama[0].bos_id == 1
    assert llama[0].encode_prompt("") == [1]
    assert gpt[0].vocab_size == gpt[1].get_vocab_size()


@pytest.mark.parametrize(
    ("config", "ids"), [({}, [1, 260]), ({"add_bos_token": False}, [260]), ({"add_bos_token": True}, [1, 260])]
)
def test_bos_as_the_files_say(tmp_path: Path, config: dict[str, Any], ids: list[int]) -> None:
    """The post-processor adds one, tokenizer_config.json overrules it."""
    library = sentencepiece_like(llama_decoder())
    library.normalizer = normalizers.Replace(" ", "▁")
    tokenizer = load_tokenizer(write(tmp_path / "t", library, tokenizer_config={"bos_token": "<s>", **config}))
    assert tokenizer.encode("a") == ids
    assert tokenizer.encode("<s>a") == [1, 260]
    assert tokenizer.encode("a", add_bos=True) == [1, 260]


def test_a_prefix_of_several_tokens(tmp_path: Path) -> None:
    library = byte_level()
    processor = processors.TemplateProcessing(
        single="<|im_end|> <|endoftext|> $A", special_tokens=[("<|im_end|>", 1), ("<|endoftext|>", 0)]
    )
    library.post_processor = processor
    tokenizer = load_tokenizer(write(tmp_path / "t", library))
    assert tokenizer.decode(tokenizer.encode("a"), skip_special=False) == "<|im_end|><|endoftext|>a"
    assert tokenizer.encode("<|im_end|><|endoftext|>a") == tokenizer.encode("a")


def test_eos_from_generation_config_comes_first(tmp_path: Path) -> None:
    files = {"generation_config": {"eos_token_id": [7, 1]}, "config": {"eos_token_id": 9}}
    folder = write(tmp_path / "t", byte_level(), **files, tokenizer_config={"eos_token": "<|endoftext|>"})
    assert load_tokenizer(folder).eos_ids == (7, 1, 0)
    (folder / "generation_config.json").unlink()
    assert load_tokenizer(folder).eos_ids == (9, 0, 1)


def test_nothing_is_truncated_or_padded(tmp_path: Path) -> None:
    library = byte_level()
    library.enable_truncation(4)
    library.enable_padding(length=8)
    tokenizer = load_tokenizer(write(tmp_path / "t", library))
    assert tokenizer.decode(tokenizer.encode("a long sentence. " * 20)) == "a long sentence. " * 20
    assert len(tokenizer.encode("a")) == 1


@pytest.mark.parametrize(
    ("decoder", "ids", "text"),
    [
        (decoders.Metaspace(), [275, 276, 259, 260], "aab a"),
        (decoders.Metaspace(prepend_scheme="never"), [275, 276], " aab"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), [275, 260], " aa"),
        (decoders.WordPiece(prefix="b", cleanup=False), [260, 261, 262], "a c"),
    ],
    ids=["Metaspace", "Metaspace never", "Gemma", "WordPiece"],
)
def test_decoders(tmp_path: Path, decoder: decoders.Decoder, ids: list[int], text: str) -> None:
    library = sentencepiece_like(decoder)
    tokenizer = load_tokenizer(write(tmp_path / "t", library))
    assert tokenizer.decode(ids) == text == library.decode(ids)


def test_no_decoder_joins_with_spaces(tmp_path: Path) -> None:
    library = Library(models.WordLevel({"hello": 0, "world": 1}, unk_token="hello"))
    tokenizer = load_tokenizer(write(tmp_path / "t", library))
    assert tokenizer.decode([0, 1, 1]) == "hello world world" == library.decode([0, 1, 1])


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.CTC(),
        decoders.BPEDecoder(),
        decoders.Sequence([decoders.Fuse(), decoders.CTC()]),
        decoders.Strip(" ", 0, 2),
    ],
    ids=["CTC", "BPEDecoder", "in a sequence", "Strip"],
)
def test_decoders_without_bytes_are_refused(tmp_path: Path, decoder: decoders.Decoder) -> None:
    folder = write(tmp_path / "t", sentencepiece_like(decoder))
    with pytest.raises(TokenizerError, match="decoder that is not supported"):
        load_tokenizer(folder)


def broken_files() -> Iterable[tuple[str, bytes, str]]:
    yield "tokenizer.json", b"{", "no usable tokenizer.json"
    yield "tokenizer.json", b"", "no usable tokenizer.json"
    yield "tokenizer.json", b"\xff\xfe", "no usable tokenizer.json"
    yield "tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}', "no usable"
    yield "tokenizer_config.json", b"[1]", "no JSON object"
    yield "tokenizer_config.json", b"{nope", "no JSON"
    yield "special_tokens_map.json", b"\xff", "no JSON"
    yield "generation_config.json", b'{"eos_token_id": 4000}', "eos_token_id is 4000"
    yield "generation_config.json", b'{"eos_token_id": [-1]}', "eos_token_id is -1"
    yield "generation_config.json", b'{"eos_token_id": "2"}', "eos_token_id is '2'"
    yield "generation_config.json", b'{"eos_token_id": 99999999999999999999}', "eos_token_id is 9999"
    yield "generation_config.json", b"[" * 100_000, "no JSON"


@pytest.mark.parametrize(("name", "content", "message"), list(broken_files()))
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = write(tmp_path / "t", byte_level())
    (folder / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("config", [{"eos_token": 7}, {"eos_token": {"content": None}}, {"bos_token": "<no such>"}])
def test_unknown_names_of_special_tokens_are_passed_over(tmp_path: Path, config: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "t", byte_level(), tokenizer_config=config))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, (1, 0))


def test_an_absurd_id_costs_no_memory(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", byte_level())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["far away"] = 2**31
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size < 1000


def test_sources(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", byte_level())
    expected = load_tokenizer(folder).encode("hello")
    assert load_tokenizer(str(folder)).encode("hello") == expected
    assert load_tokenizer(folder / "tokenizer.json").encode("hello") == expected
    assert load_tokenizer(Checkpoint(folder, "hf", "gpt2", {}, {})).encode("hello") == expected


def test_a_gguf_file(tmp_path: Path) -> None:
    metadata = {"general.architecture": "llama", **spm_metadata()}
    file = write_gguf(tmp_path / "m.gguf", metadata, {})
    assert load_tokenizer(file).decode(load_tokenizer(open_checkpoint(file)).encode("hello é")) == "hello é"
    metadata["tokenizer.ggml.eos_token_id"] = 99_999
    broken = write_gguf(tmp_path / "broken.gguf", metadata, {})
    with pytest.raises(TokenizerError, match=r"broken\.gguf: tokenizer\.ggml\.eos_token_id"):
        load_tokenizer(broken)


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"a tokenizer\.json is needed"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="--tokenizer"):
        load_tokenizer(Checkpoint(tmp_path / "x.pt", "torch_file", "gpt2", {}, {}))
