"""Thousands of damaged model files of each format, received by children under limits: no fault, no crash, no hang."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roseinfer.checkpoints import open_checkpoint
from roseinfer.core.errors import CheckpointError, InvalidRequestError, TokenizerError, UnsupportedModelError
from roseinfer.core.machine import usable_cores
from roseinfer.models import load_model
from roseinfer.text.chat_template import ChatTemplate
from roseinfer.text.control_names import ControlNames
from roseinfer.text.loading import load_tokenizer
from tests.fuzz import campaign, mutant
from tests.fuzz.gguf_files import TENSOR_KINDS, Entry, gguf_model
from tests.fuzz.mutant import Mutant, find_format, rng_of
from tests.fuzz.random_models import Sizes, gguf_shapes, random_weights
from tests.fuzz.safetensors_format import random_base
from tests.fuzz.small_vocabularies import tokenizer_files

SEED = 20260
COUNTS = {"gguf": 5000, "safetensors": 5000, "torch": 5000, "config": 500, "program": 300}
COUNTS |= {"tokenizer": 500, "template": 200}


@pytest.mark.parametrize("name", mutant.format_names())
def test_mutants(name: str, tmp_path: Path) -> None:
    result = campaign.run(name, COUNTS[name], SEED, num_children=usable_cores(), faults=tmp_path / "faults")
    assert not result.faults, "\n".join(f"{fault.index}: {fault.reason}" for fault in result.faults)
    assert result.count == COUNTS[name]
    loaded = result.outcomes["loaded"] + result.outcomes["stepped"]
    assert loaded > COUNTS[name] / 20  # otherwise the mutants would be refused for their making
    assert (loaded < COUNTS[name] * 0.7) == (name != "program")
    assert bool(result.outcomes["stepped"]) == (name not in ("tokenizer", "template"))


@pytest.mark.parametrize("name", mutant.format_names())
def test_a_mutant_can_be_made_again(name: str) -> None:
    module = find_format(name)
    assert module.make(module.make_bases(), rng_of(name, 1, 7)) == module.make(module.make_bases(), rng_of(name, 1, 7))


def test_every_format_is_run() -> None:
    assert set(COUNTS) == set(mutant.format_names())


# -- the campaign finds what goes wrong ---------------------------------------------------------------------------

MISBEHAVING = """
import os, socket, subprocess, time
from tests.fuzz.mutant import Mutant

def swallowed():
    try:
        os.system("true")
    except BaseException:
        pass

FAULTS = [
    ("crash", lambda: os.abort()),
    ("hang", lambda: time.sleep(600)),
    ("error", lambda: {}["missing"]),
    ("error", lambda: bytes(8 << 30)),
    ("side effect", swallowed),
    ("side effect", lambda: subprocess.run(["true"])),
    ("side effect", lambda: socket.socket()),
    ("side effect", lambda: open("/etc/passwd")),
    ("side effect", lambda: open("new", "w")),
    ("side effect", lambda: __import__("this")),
    ("side effect", lambda: exec("1")),
]

def make_bases(): return None
def sound(bases): return [Mutant({"": b"1000"})]
def make(bases, rng): return Mutant({"": str(rng.randrange(30)).encode()})

def receive(path, rng):
    number = int(path.read_bytes())
    if number < len(FAULTS):
        FAULTS[number][1]()
    return "loaded"
"""


def test_every_kind_of_fault_is_found_and_the_campaign_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that misbehaves lies in another portion of the namespace package `tests.fuzz`."""
    folder = tmp_path / "tests" / "fuzz"
    folder.mkdir(parents=True)
    (folder / "misbehaving_format.py").write_text(MISBEHAVING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(campaign, "STUCK_SECONDS", 3.0)
    count = 60
    result = campaign.run("misbehaving", count, 3, num_children=2, faults=tmp_path / "faults")
    module: Any = find_format("misbehaving")
    numbers = [int(module.make(None, rng_of("misbehaving", 3, index)).files[""]) for index in range(count)]
    expected = {i: module.FAULTS[number][0] for i, number in enumerate(numbers) if number < len(module.FAULTS)}
    assert set(numbers) >= set(range(len(module.FAULTS)))
    assert {fault.index: fault.kind for fault in result.faults} == expected
    assert result.outcomes == {"loaded": count - len(expected)}
    for fault in result.faults:
        assert (fault.folder / "mutant").read_text() == str(numbers[fault.index])
        assert (fault.folder / "reason.txt").read_text() == fault.reason


# -- faults that mutants have found -------------------------------------------------------------------------------


def test_files_of_no_known_kind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"GGU", b"hello", b"\x7fELF" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a model file"):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(tmp_path / "missing")


def test_a_quantised_vector_has_no_rows_to_move(tmp_path: Path) -> None:
    """Llama's biases of q and k are permuted."""
    weights = random_weights(gguf_shapes("llama", Sizes()), ("f32",), random.Random(0), is_wild=False)
    file = gguf_model("llama", Sizes(), weights, {})
    file.entries.append(Entry("blk.0.attn_q.bias", [32], TENSOR_KINDS["q5_0"], bytes(22)))
    path = Mutant({"": file.encode()}).write(tmp_path)
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(UnsupportedModelError, match=r"attn_q\.bias is a vector in q5_0"),
    ):
        load_model(checkpoint)


def test_weights_are_no_integers(tmp_path: Path) -> None:
    """Such tensors may lie in a file beside the weights."""
    base = random_base("llama", Sizes(), random.Random(0), is_wild=False, num_shards=1)
    for entry in base.shards["model.safetensors"][0].values():
        if "dtype" in entry:
            entry["dtype"] = {"F32": "I32", "F16": "I16", "BF16": "U16"}[entry["dtype"]]
    path = Mutant(base.files()).write(tmp_path)
    with open_checkpoint(path) as checkpoint, pytest.raises(UnsupportedModelError, match="which no weights can be in"):
        load_model(checkpoint)


def test_a_template_that_takes_long_to_compile_is_refused() -> None:
    for source in ("{{ a }}" * 30_000, "{{ " + "'a' ~ " * 30_000 + "'a' }}"):
        with pytest.raises(InvalidRequestError, match="more than 30000 tokens"):
            ChatTemplate(source).render([{"role": "user", "content": "x"}])


@given(st.lists(st.text("<|>ab ", max_size=6), max_size=8), st.text("<|>ab ", max_size=12))
def test_beginnings_of_control_names(names: list[str], text: str) -> None:
    beginnings = {name[:n] for name in names if name.strip() for n in range(1, len(name))}
    begun = [n for n in range(len(text), 0, -1) if text[-n:] in beginnings and not text[-n:].isalnum()]
    assert ControlNames(names).num_begun(text) == next(iter(begun), 0)


def test_long_names_of_control_tokens_cost_what_they_take() -> None:
    """Not the square of it."""
    tracemalloc.start()
    try:
        assert ControlNames(["<" + "|" * 100_000]).num_begun("<|||") == 4
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_template_that_is_compared_with_many_names_is_refused_in_time() -> None:
    source = "".join(f"{{{{ a == 'x{i}' }}}}" for i in range(4000))
    template = ChatTemplate(source, control_names=[f"<|{i}|>" for i in range(50_000)], max_seconds=0.1)
    begin = time.thread_time()
    with pytest.raises(InvalidRequestError, match="takes too long"):
        template.render([{"role": "user", "content": "x"}])
    assert time.thread_time() - begin < 2.0


def test_a_post_processor_adds_ids_of_tokens(tmp_path: Path) -> None:
    texts = tokenizer_files()[-1]  # [CLS] of BERT, here <s>
    changed = texts["tokenizer.json"].replace('["<s>",1]', '["<s>",4711]')
    assert changed != texts["tokenizer.json"]
    path = Mutant({"tokenizer.json": changed.encode()}).write(tmp_path)
    with pytest.raises(TokenizerError, match="adds the id 4711"):
        load_tokenizer(path)


def test_ids_that_are_left_out_count(tmp_path: Path) -> None:
    content = json.loads(tokenizer_files()[0]["tokenizer.json"])
    content["added_tokens"] = []
    content["model"]["vocab"] = {text: 2 * i for i, text in enumerate(content["model"]["vocab"])}
    path = Mutant({"tokenizer.json": json.dumps(content).encode()}).write(tmp_path)
    tokenizer = load_tokenizer(path)
    assert tokenizer.vocab_size == 1 + max(content["model"]["vocab"].values())
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
