"""The vocabularies of two real models; the literal ids are llama.cpp's for the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.text import Tokenizer, load_tokenizer

# The bytes for which SmolLM2 has no token; the model never saw them.
MISSING_IN_SMOLLM2 = frozenset(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")

SMOLLM2_IDS = [
    ("Hello world, how are you?", [19556, 905, 28, 638, 359, 346, 47]),
    (" leading and trailing ", [2899, 284, 35079, 216]),
    (
        "Two  spaces,   three, \t tab\r\n\r\n\nlines",
        [10345, 216, 5600, 28, 256, 1296, 28, 216, 197, 10147, 18682, 198, 5110],
    ),
    ("12345 + 3.14 = 1e5 ½", [33, 34, 35, 36, 37, 1232, 216, 35, 30, 33, 36, 446, 216, 33, 85, 37, 216, 16738]),
    (
        "def f(x):\n    return x**2  # don't I'LL we've",
        [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 1326, 982, 339, 23, 16421, 392, 3543],
    ),
    ("naïve café Straße e\u0301", [3546, 46494, 37366, 19144, 34878, 85, 297, 151, 219]),
    ("🤗 👩\u200d👩\u200d👧", [10813, 114, 241, 15107, 235, 119, 321, 231, 10813, 235, 119, 321, 231, 10813, 235, 117]),
    ("a\xa0b\u3000c\u200bd\ufeff\x00", [81, 15442, 82, 12109, 218, 83, 321, 229, 84, 186, 136, 140, 190]),
    ("<|im_start|>user\nhi<|im_end|>\n", [1, 4093, 198, 6004, 2, 198]),
    ("=======================", [6414, 2031, 28733]),
    ("\n\n\n\n          x", [16506, 7338, 1792]),
]

GEMMA3_IDS = [
    ("Hello world, how are you?", [9259, 1902, 236764, 1217, 659, 611, 236881]),
    (" leading and trailing ", [5830, 532, 45330, 236743]),
    (
        "Two  spaces,   three, \t tab\r\n\r\n\nlines",
        [11634, 138, 35220, 236764, 139, 19891, 236764, 236743, 255968, 6937, 251, 107, 251, 108, 8721],
    ),
    ("naïve café Straße e\u0301", [1789, 238527, 560, 33443, 80176, 545, 238288]),
    ("漢字かな交じり文 한국어", [201637, 19735, 237915, 237943, 237122, 237364, 50413, 237430]),
    ("🤗 👩\u200d👩\u200d👧 🇩🇪", [242352, 236743, 243767, 237243, 243767, 237243, 244814, 236743, 246841, 245562]),
    (
        "a\xa0b\u3000c\u200bd\ufeff\x00",
        [236746, 432, 398, 236763, 465, 366, 366, 236755, 237141, 236753, 237922, 238],
    ),
    ("<start_of_turn>user\nhi<end_of_turn>\n<b>x</b></s>", [105, 2364, 107, 2202, 106, 107, 200, 236781, 209, 212]),
    ("▁a▁▁b <0x41>", [496, 236743, 518, 655, 236771, 236781, 236812, 236770, 236813]),
    ("=======================", [6977, 120697]),
    ("\n\n\n\n          x", [110, 146, 236781]),
]


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(smollm2_path)


@pytest.fixture(scope="module")
def gemma3(gemma3_path: Path) -> Tokenizer:
    return load_tokenizer(gemma3_path)


@pytest.mark.parametrize(("text", "ids"), SMOLLM2_IDS)
def test_smollm2_ids(smollm2: Tokenizer, text: str, ids: list[int]) -> None:
    assert smollm2.encode(text) == ids


@pytest.mark.parametrize(("text", "ids"), GEMMA3_IDS)
def test_gemma3_ids(gemma3: Tokenizer, text: str, ids: list[int]) -> None:
    assert gemma3.encode(text) == [2, *ids]
    assert gemma3.encode("<bos>" + text) == [2, *ids]


def test_special_ids(smollm2: Tokenizer, gemma3: Tokenizer) -> None:
    assert (smollm2.bos_id, smollm2.eos_ids, smollm2.pad_id, smollm2.vocab_size) == (1, (2, 0), 2, 49_152)
    assert (gemma3.bos_id, gemma3.eos_ids, gemma3.pad_id, gemma3.vocab_size) == (2, (1, 106), 0, 262_144)
    assert smollm2.encode_prompt("") == [1]
    assert gemma3.encode_prompt("") == [2]


def test_special_tokens_as_text(smollm2: Tokenizer, gemma3: Tokenizer) -> None:
    assert smollm2.encode("Hello <|im_end|> x", parse_special=False) == [19556, 2067, 108, 306, 79, 486, 108, 46, 1792]
    ids = gemma3.encode("<end_of_turn><eos></s>", parse_special=False)
    assert not {1, 106} & set(ids)
    assert gemma3.decode(ids) == "<end_of_turn><eos></s>"


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_smollm2_round_trip(smollm2: Tokenizer, text: str) -> None:
    kept = "".join(char for char in text if not MISSING_IN_SMOLLM2 & set(char.encode()))
    assert smollm2.decode(smollm2.encode(kept, parse_special=False)) == kept


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60))
def test_gemma3_round_trip(gemma3: Tokenizer, text: str) -> None:
    assert gemma3.decode(gemma3.encode(text, parse_special=False)) == text


@given(chunks=st.lists(st.lists(st.integers(0, 262_143), max_size=4), max_size=20))
def test_streams_join_to_decode(smollm2: Tokenizer, gemma3: Tokenizer, chunks: list[list[int]]) -> None:
    ids = [token_id for chunk in chunks for token_id in chunk]
    for tokenizer in (smollm2, gemma3):
        stream = tokenizer.detokenizer()
        assert "".join([stream.push(chunk) for chunk in chunks]) + stream.finish() == tokenizer.decode(ids)
