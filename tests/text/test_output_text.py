"""Outputs → deltas: however the outputs are cut, their texts, entries and counts join to the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from roseinfer.core.messages import TokenOutput
from roseinfer.text import Tokenizer, load_tokenizer
from roseinfer.text.gguf_tokenizer import load_gguf_tokenizer
from roseinfer.text.output_text import OutputText, TextDelta, TextOptions, TokenInfo
from tests.text.vocabularies import byte_level_metadata, spm_metadata

BYTE_LEVEL = load_gguf_tokenizer(byte_level_metadata())
SPM = load_gguf_tokenizer(spm_metadata())
BOS, END = 262, 263  # control tokens of BYTE_LEVEL

CUTS = st.lists(st.integers(0, 3), max_size=30)
STOPS = st.lists(st.sampled_from(["he", "hello", "ll", "l", " w", "é", "\ufffd", "or", "lo w", "a" * 9]), max_size=4)


@pytest.fixture(scope="module")
def word_piece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    words = ["[UNK]", "[CLS]", "he", "##llo", "hello", "w", "##or", "##ld", "é", "!", "漢", "."]
    library = Library(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(["[UNK]", "[CLS]"])
    file = tmp_path_factory.mktemp("word_piece") / "tokenizer.json"
    library.save(str(file))
    return load_tokenizer(file)


@pytest.fixture(scope="module", params=["byte_level", "spm", "word_piece"])
def tokenizer(request: pytest.FixtureRequest, word_piece: Tokenizer) -> Tokenizer:
    return {"byte_level": BYTE_LEVEL, "spm": SPM, "word_piece": word_piece}[request.param]


def outputs_of(
    ids: Sequence[int],
    finish: Literal["stop", "length"] | None = "length",
    *,
    stop_token_id: int | None = None,
    tops: Sequence[Sequence[int]] = (),
) -> list[TokenOutput]:
    """One for each token, as the engine sends them."""
    outputs = []
    for i, token_id in enumerate(ids):
        is_last = i == len(ids) - 1
        outputs.append(
            TokenOutput(
                "r",
                [token_id],
                logprobs=[-float(i)],
                top_ids=[list(tops[i])] if tops else [],
                top_logprobs=[[-0.5] * len(tops[i])] if tops else [],
                finish_reason=finish if is_last else None,
                stop_token_id=stop_token_id if is_last else None,
            )
        )
    return outputs


@dataclass
class Answer:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    tokens: list[TokenInfo] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def add(self, delta: TextDelta) -> None:
        assert self.finish_reason is None or delta == TextDelta("", [], [], 0)
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.tokens += delta.tokens
        self.num_tokens += delta.num_tokens
        self.finish_reason = self.finish_reason or delta.finish_reason
        self.stop_reason = delta.stop_reason if self.stop_reason is None else self.stop_reason


def run(tokenizer: Tokenizer, outputs: list[TokenOutput], cuts: Sequence[int] = (), **options: Any) -> Answer:
    """`cuts`: how many outputs each `take` gets; the last one gets the rest."""
    eos_ids, with_logprobs = options.pop("eos_ids", ()), options.pop("with_logprobs", False)
    output_text = OutputText(tokenizer, TextOptions(**options), eos_ids=eos_ids, with_logprobs=with_logprobs)
    answer, position = Answer(), 0
    for size in (*cuts, len(outputs)):
        answer.add(output_text.take(outputs[position : position + size]))
        position += size
    assert output_text.is_finished == (answer.finish_reason is not None)
    return answer


def ids_for(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids, now and then those of words in which the stop strings lie."""
    any_id = st.integers(-1, tokenizer.vocab_size + 1).map(lambda i: [i])
    words = st.sampled_from(["hello", "hello world", "é", "w", "ll"])
    return st.lists(any_id | words.map(lambda text: tokenizer.encode(text, add_bos=False)), max_size=12).map(
        lambda parts: [token_id for part in parts for token_id in part] or [0]
    )


@given(data=st.data(), cuts=CUTS, skip=st.booleans(), with_logprobs=st.booleans())
def test_deltas_join_to_decode(
    tokenizer: Tokenizer, data: st.DataObject, cuts: list[int], skip: bool, with_logprobs: bool
) -> None:
    ids = data.draw(ids_for(tokenizer))
    answer = run(tokenizer, outputs_of(ids), cuts, skip_special_tokens=skip, with_logprobs=with_logprobs)
    assert answer.text == tokenizer.decode(ids, skip_special=skip, continuation=True)
    assert (answer.token_ids, answer.num_tokens, answer.finish_reason) == (ids, len(ids), "length")
    if with_logprobs:
        assert [info.token_id for info in answer.tokens] == ids
        assert b"".join(info.token_bytes for info in answer.tokens).decode("utf-8", "replace") == answer.text
    else:
        assert answer.tokens == []


@given(data=st.data(), cuts=CUTS, stops=STOPS, include_stop=st.booleans(), min_tokens=st.integers(0, 8))
def test_stop_strings_like_a_naive_search(
    tokenizer: Tokenizer, data: st.DataObject, cuts: list[int], stops: list[str], include_stop: bool, min_tokens: int
) -> None:
    ids = data.draw(ids_for(tokenizer))
    options = {"stop": tuple(stops), "include_stop": include_stop, "min_tokens": min_tokens}
    answer = run(tokenizer, outputs_of(ids), cuts, **options)
    assert (answer.text, answer.num_tokens, answer.stop_reason) == naive(tokenizer, ids, **options)
    assert answer.finish_reason == ("length" if answer.stop_reason is None else "stop")
    assert answer.token_ids == ids[: answer.num_tokens]


def naive(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...], include_stop: bool, min_tokens: int
) -> tuple[str, int, str | None]:
    """Every place of the whole text, in order, with the token that makes it whole."""
    stream = tokenizer.detokenizer()
    text = ""
    for num_tokens, token_id in enumerate([*ids, None], 1):
        piece = stream.finish() if token_id is None else stream.push([token_id])
        for char in piece:
            text += char
            found = max([s for s in stop if text.endswith(s)], key=len, default=None)
            if found is not None and min(num_tokens, len(ids)) >= min_tokens:
                return text if include_stop else text.removesuffix(found), min(num_tokens, len(ids)), found
    return text, len(ids), None


@given(data=st.data(), cuts=CUTS, stops=STOPS, include_stop=st.booleans(), skip=st.booleans())
def test_cuts_change_nothing(
    tokenizer: Tokenizer, data: st.DataObject, cuts: list[int], stops: list[str], include_stop: bool, skip: bool
) -> None:
    ids = data.draw(ids_for(tokenizer))
    tops = [[i, 0] for i in ids]
    options: dict[str, Any] = {
        "stop": tuple(stops),
        "include_stop": include_stop,
        "skip_special_tokens": skip,
        "with_logprobs": True,
        "eos_ids": (END,),
    }
    outputs = outputs_of(ids, "stop", stop_token_id=ids[-1], tops=tops)
    whole = run(tokenizer, outputs, **options)
    assert run(tokenizer, outputs, cuts, **options) == whole
    assert run(tokenizer, merged(outputs), **options) == whole
    offsets = [info.text_offset for info in whole.tokens]
    assert offsets == sorted(offsets)
    shown = b"".join(info.token_bytes for info in whole.tokens).decode("utf-8", "replace")
    assert shown.startswith(whole.text.rstrip("\ufffd"))  # more than the text only where a stop string cuts a token


def merged(outputs: list[TokenOutput]) -> list[TokenOutput]:
    """A single one with all tokens."""
    return [
        TokenOutput(
            "r",
            [output.token_ids[0] for output in outputs],
            logprobs=[output.logprobs[0] for output in outputs],
            top_ids=[output.top_ids[0] for output in outputs],
            top_logprobs=[output.top_logprobs[0] for output in outputs],
            finish_reason=outputs[-1].finish_reason,
            stop_token_id=outputs[-1].stop_token_id,
        )
    ]


@given(text=st.text(st.sampled_from("abcSTOPé 漢"), max_size=30), data=st.data())
def test_no_delta_shows_the_beginning_of_a_stop_string(text: str, data: st.DataObject) -> None:
    stop = data.draw(st.text(st.sampled_from("abSTOPé"), min_size=1, max_size=6))
    outputs = outputs_of(BYTE_LEVEL.encode(text + stop + "behind"))
    output_text = OutputText(BYTE_LEVEL, TextOptions(stop=(stop,)))
    shown = ""
    for output in outputs:
        shown += output_text.take([output]).text
        assert (text + stop).startswith(shown)
        assert stop not in shown
    assert shown == (text + stop)[: (text + stop).index(stop)]
    assert output_text.is_finished


def test_held_text_comes_when_it_is_no_stop_string_or_at_the_end() -> None:
    output_text = OutputText(BYTE_LEVEL, TextOptions(stop=("STOP",)))
    outputs = outputs_of(BYTE_LEVEL.encode("aSTO!ST"))
    assert [output_text.take([output]).text for output in outputs] == ["a", "", "", "", "STO!", "", "ST"]


def test_a_limit_inside_a_character() -> None:
    ids = BYTE_LEVEL.encode("a漢")[:-1]
    assert run(BYTE_LEVEL, outputs_of(ids), [1, 1, 1]).text == "a\ufffd"
    whole = run(BYTE_LEVEL, outputs_of(ids), with_logprobs=True)
    assert [info.token_bytes for info in whole.tokens] == [b"a", b"\xe6", b"\xbc"]
    assert [info.token for info in whole.tokens] == ["a", "\ufffd", "\ufffd"]
    assert [info.text_offset for info in whole.tokens] == [0, 1, 1]


def test_entries_wait_for_their_text() -> None:
    output_text = OutputText(BYTE_LEVEL, TextOptions(stop=("STOP",)), with_logprobs=True)
    ids = [*BYTE_LEVEL.encode("aé"), BOS, *BYTE_LEVEL.encode("ST!")]
    deltas = [output_text.take([output]) for output in outputs_of(ids, None)]
    assert [delta.text for delta in deltas] == ["a", "", "é", "", "", "", "ST!"]
    shown = [[info.token_bytes for info in delta.tokens] for delta in deltas]
    assert shown == [[b"a"], [], [b"\xc3", b"\xa9"], [b""], [], [], [b"S", b"T", b"!"]]
    assert deltas[3].tokens[0].token == "<|bos|>"


@pytest.mark.parametrize(
    ("stop", "include_stop", "text", "tokens"),
    [
        ("ll", False, "a", ["a"]),
        ("llo", False, "ahe", ["a", "hello"]),  # a stop string inside a token leaves the token whole
        ("hello", False, "a", ["a"]),
        ("a", False, "", []),
        ("ahell", True, "ahell", ["a", "hello"]),
        ("o w", False, "ahell", ["a", "hello"]),
        ("o w", True, "ahello w", ["a", "hello", " w"]),
    ],
)
def test_entries_at_a_stop_string(stop: str, include_stop: bool, text: str, tokens: list[str]) -> None:
    ids = BYTE_LEVEL.encode("ahello we")
    if stop == "ll":
        ids = [*BYTE_LEVEL.encode("a"), *BYTE_LEVEL.encode("ll"), *ids]
    answer = run(BYTE_LEVEL, outputs_of(ids), stop=(stop,), include_stop=include_stop, with_logprobs=True)
    assert answer.text == text
    assert [info.token for info in answer.tokens] == tokens


def test_likely_tokens() -> None:
    ids = BYTE_LEVEL.encode("a")
    answer = run(BYTE_LEVEL, outputs_of(ids, tops=[[ids[0], 0xE9, END]]), with_logprobs=True)
    (info,) = answer.tokens
    assert [(top.token_id, top.logprob) for top in info.top] == [(ids[0], -0.5), (0xE9, -0.5), (END, -0.5)]
    assert (info.top[0].token, info.top[0].token_bytes) == ("a", b"a")
    assert info.top[1].token == "\ufffd"
    assert info.top[1].token_bytes == BYTE_LEVEL.token_bytes(0xE9)
    assert (info.top[2].token, info.top[2].token_bytes) == ("<|im_end|>", b"")


@pytest.mark.parametrize(
    ("stop_id", "options", "text", "num_ids", "reason"),
    [
        (END, {"eos_ids": (END,)}, "a", 1, None),
        (END, {"eos_ids": (END,), "include_stop": True, "skip_special_tokens": False}, "a", 1, None),
        (END, {}, "a", 1, END),
        (END, {"include_stop": True}, "a", 2, END),  # a special token that is skipped
        (END, {"include_stop": True, "skip_special_tokens": False}, "a<|im_end|>", 2, END),
        (ord("b") - 33, {"eos_ids": (END,)}, "a", 1, ord("b") - 33),
        (ord("b") - 33, {"include_stop": True}, "ab", 2, ord("b") - 33),
    ],
)
@pytest.mark.parametrize("with_logprobs", [False, True])
def test_stop_tokens(
    stop_id: int, options: dict[str, Any], text: str, num_ids: int, reason: int | None, with_logprobs: bool
) -> None:
    outputs = outputs_of([*BYTE_LEVEL.encode("a"), stop_id], "stop", stop_token_id=stop_id)
    answer = run(BYTE_LEVEL, outputs, [1, 1], with_logprobs=with_logprobs, **options)
    assert (answer.text, answer.num_tokens, len(answer.token_ids)) == (text, 2, num_ids)
    assert (answer.finish_reason, answer.stop_reason) == ("stop", reason)
    assert len(answer.tokens) == num_ids * with_logprobs


def test_a_stop_token_ends_a_character_and_releases_what_is_held() -> None:
    ids = [*BYTE_LEVEL.encode("aST漢")[:-1], END]
    outputs = outputs_of(ids, "stop", stop_token_id=END)
    answer = run(BYTE_LEVEL, outputs, [1] * len(ids), stop=("STOP",), eos_ids=(END,))
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("aST\ufffd", "stop", None)


def test_nothing_behind_a_stop_string_counts() -> None:
    outputs = outputs_of(BYTE_LEVEL.encode("hello w and more"))
    answer = run(BYTE_LEVEL, outputs, stop=("w",))
    assert (answer.text, answer.num_tokens, answer.stop_reason) == ("hello ", 2, "w")


def test_min_tokens() -> None:
    ids = BYTE_LEVEL.encode("aaaa")
    assert [run(BYTE_LEVEL, outputs_of(ids), stop=("aa",), min_tokens=n).text for n in range(6)] == [
        *["", "", "", "a", "aa"],
        "aaaa",
    ]


def test_real_vocabulary(smollm2_path: Path) -> None:
    tokenizer = load_tokenizer(smollm2_path)
    text = "A naïve café — 漢字 🤗! Human: and more"
    outputs = outputs_of(tokenizer.encode(text))
    answer = run(tokenizer, outputs, [1] * len(outputs), stop=("\n\n", "Human:"), with_logprobs=True)
    assert answer.text == text[: text.index("Human:")]
    assert b"".join(info.token_bytes for info in answer.tokens).decode().startswith(answer.text)
