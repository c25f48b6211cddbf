"""Tokenizers from GGUF metadata: what the keys mean, and what happens when they lie."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roseinfer.core.errors import InvalidRequestError, TokenizerError
from roseinfer.text.gguf_tokenizer import load_gguf_tokenizer
from roseinfer.text.tokenizer import Tokenizer
from tests.text.vocabularies import byte_level_metadata, spm_metadata

BYTE_LEVEL = load_gguf_tokenizer(byte_level_metadata())
SPM = load_gguf_tokenizer(spm_metadata())
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SPM], ids=["gpt2", "llama"])
BOS, END, TAG = 262, 263, 264


def test_merges_and_special_tokens() -> None:
    pieces = [BYTE_LEVEL.token_bytes(i) for i in BYTE_LEVEL.encode("hello w12<|im_end|><tag>é")]
    assert pieces == [b"hello", b" w", b"12", b"<|im_end|>", b"<tag>", b"\xc3", b"\xa9"]


def test_special_tokens_as_text() -> None:
    """User-defined tokens are text, and match always; control tokens only where they are parsed."""
    ids = BYTE_LEVEL.encode("<|im_end|><tag>", parse_special=False)
    assert END not in ids
    assert ids[-1] == TAG
    assert BYTE_LEVEL.decode(ids) == "<|im_end|><tag>"


def test_what_is_special() -> None:
    assert [BYTE_LEVEL.is_special(i) for i in (0, BOS, END, TAG)] == [False, True, True, False]
    ids = BYTE_LEVEL.encode("a<|im_end|><tag>")
    assert BYTE_LEVEL.decode(ids) == "a<tag>"
    assert BYTE_LEVEL.decode(ids, skip_special=False) == "a<|im_end|><tag>"


@pytest.mark.parametrize(
    ("changes", "adds"),
    [({}, False), ({"add_bos_token": True}, True), ({"pre": "llama-bpe"}, True)],
)
def test_bos_as_the_file_says(changes: dict[str, Any], adds: bool) -> None:
    tokenizer = load_gguf_tokenizer(byte_level_metadata(**changes))
    assert (tokenizer.encode("a")[0] == BOS) == adds
    assert tokenizer.encode("a", add_bos=True)[0] == BOS
    assert tokenizer.encode("a", add_bos=False)[0] != BOS


@given(st.text(), st.sampled_from([None, True, False]), st.booleans())
def test_bos_is_never_doubled(text: str, add_bos: bool | None, parse_special: bool) -> None:
    ids = SPM.encode("<s>" * parse_special + text, add_bos=add_bos, parse_special=parse_special)
    starts = add_bos is not False or parse_special
    assert (ids[:1] == [1]) == starts
    assert ids[1:2] != [1] or text.startswith("<s>")


def test_empty_prompt_starts_from_bos_or_eos() -> None:
    assert BYTE_LEVEL.encode_prompt("") == [BOS]
    assert BYTE_LEVEL.encode_prompt("a") == BYTE_LEVEL.encode("a")
    assert SPM.encode_prompt("") == [1]
    assert load_gguf_tokenizer(byte_level_metadata(bos_token_id=None)).encode_prompt("") == [END]


def test_empty_prompt_without_a_start() -> None:
    bare = load_gguf_tokenizer(byte_level_metadata(bos_token_id=None, eos_token_id=None, token_type=[1] * 265))
    with pytest.raises(InvalidRequestError) as raised:
        bare.encode_prompt("")
    assert raised.value.param == "prompt"


@BOTH
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60))
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<"), max_size=30), st.integers(0, 30))
def test_a_completion_keeps_its_leading_space(text: str, cut: int) -> None:
    """Prompt and completion joined are the whole text, wherever the ids are divided between characters."""
    ids = SPM.encode(text, add_bos=False)
    prompt, completion = ids[:cut], ids[cut:]
    whole = b"".join(map(SPM.token_bytes, ids)).decode()
    if "\ufffd" not in SPM.decode(prompt) + SPM.decode(completion, continuation=True):
        assert SPM.decode(prompt, continuation=True) + SPM.decode(completion, continuation=True) == whole
    assert SPM.decode(ids) == whole.removeprefix(" ") == text


@BOTH
@given(st.text(st.sampled_from("hello w12é漢<|im_end|>=a")), st.booleans())
def test_the_lower_bound_holds(tokenizer: Tokenizer, text: str, parse_special: bool) -> None:
    assert tokenizer.min_num_tokens(text) <= len(tokenizer.encode(text, add_bos=False, parse_special=parse_special))


def test_the_lower_bound_grows_with_the_text() -> None:
    assert BYTE_LEVEL.min_num_tokens("a" * 1000) == 100  # its longest token has ten characters


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00"])
@BOTH
def test_lone_surrogates(tokenizer: Tokenizer, text: str) -> None:
    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@BOTH
def test_ids_outside_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([-1, tokenizer.vocab_size, 10**12]) == ""
    assert tokenizer.token_bytes(-1) == b""
    assert not tokenizer.is_special(-1)


@BOTH
def test_threads_agree(tokenizer: Tokenizer) -> None:
    texts = [f"hello world {i} <|im_end|></s> é漢 " * 20 for i in range(50)]
    expected = [tokenizer.encode(text, parse_special=bool(i % 2)) for i, text in enumerate(texts)]
    fresh = load_gguf_tokenizer(byte_level_metadata() if tokenizer is BYTE_LEVEL else spm_metadata())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: fresh.encode(texts[i], parse_special=bool(i % 2)), range(50)))
    assert found == expected


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    """Or one long prompt would stop the server's event loop."""
    encoding = threading.Thread(target=BYTE_LEVEL.encode, args=("hello world, " * 100_000,))
    num_turns = 0
    encoding.start()
    while encoding.is_alive():
        time.sleep(0.001)
        num_turns += 1
    assert num_turns > 20


def test_end_tokens_by_id_and_by_name() -> None:
    """The named EOS first; others that are known by their text follow."""
    tokens = byte_level_metadata()["tokenizer.ggml.tokens"]
    tokens = [*tokens[:-3], "<|bos|>", "<|im_end|>", "<|eot_id|>"]
    tokenizer = load_gguf_tokenizer(byte_level_metadata(tokens=tokens, eos_token_id=262))
    assert tokenizer.eos_ids == (262, 264, 263)
    assert tokenizer.is_special(264)  # although the file calls it user-defined
    assert load_gguf_tokenizer(byte_level_metadata(eot_token_id=5)).eos_ids == (263, 5)


def test_harmony_messages_do_not_end_generation() -> None:
    tokens = [*byte_level_metadata()["tokenizer.ggml.tokens"][:-3], "<|return|>", "<|call|>", "<|end|>"]
    tokenizer = load_gguf_tokenizer(
        byte_level_metadata(tokens=tokens, token_type=[1] * 262 + [3] * 3, eos_token_id=262)
    )
    assert tokenizer.eos_ids == (262, 263)


def test_html_is_no_end_of_generation() -> None:
    """Gemma has `</s>` as a user-defined token: strike-through ends here, the answer does not."""
    tokens = [*byte_level_metadata()["tokenizer.ggml.tokens"][:-1], "</s>"]
    assert load_gguf_tokenizer(byte_level_metadata(tokens=tokens)).eos_ids == (263,)


def test_missing_token_types_mean_ordinary_tokens() -> None:
    tokenizer = load_gguf_tokenizer(byte_level_metadata(token_type=None))
    assert tokenizer.decode([END]) == ""  # the file's own EOS is special all the same
    assert tokenizer.decode([TAG]) == "<tag>"


def test_padding_id_may_be_nonsense() -> None:
    assert load_gguf_tokenizer(byte_level_metadata(padding_token_id=2**32 - 1)).pad_id is None
    assert load_gguf_tokenizer(byte_level_metadata(padding_token_id=7)).pad_id == 7


def test_gemma4_merges_over_escaped_text() -> None:
    """Literal ids from llama.cpp's tokenizer for the same vocabulary."""
    tokenizer = load_gguf_tokenizer(_gemma4_metadata())
    pieces = [tokenizer.token_bytes(i) for i in tokenizer.encode("ab  ab\n\né<end>")]
    assert pieces == [b"<bos>", b"ab", b" ", b" ab", b"\n\n", b"\xc3", b"\xa9", b"<end>"]
    assert tokenizer.decode(tokenizer.encode("ab  ab\n\né")) == "ab  ab\n\né"


def _gemma4_metadata() -> dict[str, Any]:
    tokens = ["<pad>", "<bos>", "<end>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["a", "b", "▁", "\n", "ab", "▁ab", "\n\n"]
    return byte_level_metadata(
        model="gemma4",
        pre=None,
        tokens=tokens,
        token_type=[3, 3, 3, *[6] * 256, *[1] * 7],
        merges=["a b", "▁ ab", "\n \n"],
        bos_token_id=1,
        eos_token_id=2,
    )


def _with(
    key: str, index: int, value: Any, metadata: Callable[..., dict[str, Any]] = byte_level_metadata
) -> dict[str, Any]:
    values = list(metadata()[f"tokenizer.ggml.{key}"])
    values[index] = value
    return metadata(**{key: values})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "tokenizer.ggml.model"),
        (byte_level_metadata(model="rwkv"), "'rwkv' is not supported"),
        (byte_level_metadata(model=["gpt2"]), "tokenizer.ggml.model is ['gpt2']"),
        (byte_level_metadata(pre="nobody-knows"), "'nobody-knows'"),
        (byte_level_metadata(pre=7), "tokenizer.ggml.pre is 7"),
        (byte_level_metadata(tokens=None), "no array tokenizer.ggml.tokens"),
        (byte_level_metadata(tokens=[]), "tokens is empty"),
        (byte_level_metadata(tokens="abc"), "no array tokenizer.ggml.tokens"),
        (_with("tokens", 3, 17), "something else than strings"),
        (_with("tokens", 3, "A"), "'A' more than once"),
        (byte_level_metadata(token_type=[1] * 7), "7 entries for 265 tokens"),
        (_with("token_type", 0, "x"), "something else than"),
        (_with("token_type", 0, 1.5), "something else than integers"),
        (_with("token_type", 0, [1, 2]), "something else than numbers"),
        (byte_level_metadata(merges=None), "no array tokenizer.ggml.merges"),
        (_with("merges", 0, "x yy zz"), "something else than pairs"),
        (_with("merges", 0, "nospace"), "something else than pairs"),
        (_with("merges", 0, "un known"), "un"),
        (_with("merges", 0, "a b"), "ab"),
        (_with("merges", 0, 12), "something else than strings"),
        (byte_level_metadata(eos_token_id=265), "eos_token_id is 265"),
        (byte_level_metadata(eos_token_id=-1), "eos_token_id is -1"),
        (byte_level_metadata(eos_token_id=True), "eos_token_id is True"),
        (byte_level_metadata(bos_token_id="1"), "bos_token_id is '1'"),
        (byte_level_metadata(add_bos_token=1), "add_bos_token is 1"),
        (spm_metadata(scores=None), "no array tokenizer.ggml.scores"),
        (spm_metadata(scores=[0.0]), "1 entries for"),
        (_with("scores", 5, float("nan"), spm_metadata), "finite"),
        (_with("scores", 5, float("inf"), spm_metadata), "finite"),
        (_with("scores", 5, "1", spm_metadata), "something else than numbers"),
        (_with("scores", 5, 10**400, spm_metadata), "something else than numbers"),
        (_with("tokens", 80, "no byte", spm_metadata) | {"tokenizer.ggml.unknown_token_id": None}, "every byte"),
        (spm_metadata(add_space_prefix="yes"), "add_space_prefix is 'yes'"),
    ],
)
def test_unusable_vocabularies(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError) as raised:
        load_gguf_tokenizer(metadata)
    assert message in str(raised.value)


_JUNK = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutants_load_or_raise_tokenizer_error(data: st.DataObject) -> None:
    metadata = data.draw(st.sampled_from([byte_level_metadata, spm_metadata]))()
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(metadata)))
        value = metadata[key]
        if isinstance(value, list) and value and data.draw(st.booleans()):
            index = data.draw(st.integers(0, len(value) - 1))
            metadata[key] = [*value[:index], data.draw(_JUNK | st.sampled_from(value)), *value[index + 1 :]]
        else:
            metadata[key] = data.draw(_JUNK | st.lists(_JUNK, max_size=3))
    try:
        tokenizer = load_gguf_tokenizer(metadata)
    except TokenizerError:
        return
    ids = tokenizer.encode("hello <s> world é12")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert isinstance(tokenizer.decode(ids), str)


def test_arrays_may_be_numpy_scalars() -> None:
    """Ids from an engine are often NumPy integers."""
    assert BYTE_LEVEL.decode(np.array(BYTE_LEVEL.encode("hello"))) == "hello"
