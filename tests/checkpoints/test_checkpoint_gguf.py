"""The GGUF reader: what it reads of files by the gguf package, and what it refuses."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from roseinfer.checkpoints import Checkpoint, open_checkpoint
from roseinfer.checkpoints import _gguf_metadata as metadata_limits
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from roseinfer.quant import format_names, get_format
from tests.mutants import GgufBytes, sound_gguf
from tests.writers import write_gguf

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.rope.freq_base": 10000.0,
    "negative": -(2**40),
    "flag": True,
    "tokenizer.ggml.tokens": ["<s>", "", "Ġworld", "日本"],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.0],
    "tokenizer.ggml.token_type": [1, 3, -1],
    "flags": [True, False],
}


def write(path: Path, content: GgufBytes | bytes) -> Path:
    path.unlink(missing_ok=True)
    path.write_bytes(content.end() if isinstance(content, GgufBytes) else content)
    return path


def header(num_tensors: int = 0, num_keys: int = 0) -> GgufBytes:
    """A header for the keys that follow, and the architecture."""
    return GgufBytes().header(num_tensors, num_keys + 1).text_key("general.architecture", "llama")


def open_one_tensor(path: Path, dims: list[int], kind: int = 0, offset: int = 0, num_bytes: int = 64) -> Checkpoint:
    return open_checkpoint(write(path, header(1).tensor("w", dims, kind, offset).end(b"\1" * num_bytes)))


def refuse(path: Path, content: GgufBytes | bytes, match: str, error: type[Exception] = CheckpointError) -> None:
    write(path, content)
    with pytest.raises(error, match=match) as caught:
        dict(open_checkpoint(path).config)
    assert str(caught.value).startswith(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("name", format_names())
def test_reads_tensors_of_every_format(path: Path, name: str) -> None:
    values = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    write_gguf(path, METADATA, {"norm": ("f32", values[0]), "w": (name, values)})
    checkpoint = open_checkpoint(path)
    tensor = checkpoint.tensors["w"]
    assert (tensor.format, tensor.shape) == (name, (3, 512))
    np.testing.assert_array_equal(tensor.data, get_format(name).quantize(values.reshape(-1)))
    np.testing.assert_array_equal(checkpoint.tensors["norm"].numpy(), values[0])


def test_reads_metadata(path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(path, METADATA, {}))
    assert dict(checkpoint.config) == METADATA
    assert checkpoint.container == "gguf"
    assert checkpoint.architecture == "llama"
    assert checkpoint.generation_config == {}
    assert "flags" in checkpoint.config
    assert checkpoint.config.get("missing") is None


def test_values_have_plain_types(path: Path) -> None:
    config = open_checkpoint(write_gguf(path, METADATA, {})).config
    assert [type(config[key]) for key in ("flag", "negative", "llama.rope.freq_base")] == [bool, int, float]
    assert [type(config[key][0]) for key in ("flags", "tokenizer.ggml.token_type")] == [bool, int]


def test_arrays_are_decoded_once(path: Path) -> None:
    config = open_checkpoint(write_gguf(path, METADATA, {})).config
    assert config["tokenizer.ggml.tokens"] is config["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    "strings",
    [
        [],
        [""],
        ["", "", ""],
        ["a" * 255, "b" * 256, "c" * 65_536, "d" * 70_000, ""],
        ["\0", "a\0b", "\0" * 8],
        ["\x1e", "a", "\x1e\x1e"],
        ["日" * 100, "\x1f", "é"],
    ],
    ids=["none", "empty", "all empty", "long", "zeros", "marks", "wide"],
)
def test_strings_of_any_length_and_content(path: Path, strings: list[str]) -> None:
    content = header(num_keys=2).array_key("strings", 8, len(strings))
    for string in strings:
        content.text(string)
    config = open_checkpoint(write(path, content.text_key("last", "!"))).config
    assert config["strings"] == strings
    assert config["last"] == "!"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc")
def test_pages_that_were_read_can_be_forgotten(path: Path) -> None:
    values = np.arange(1 << 20, dtype=np.float32)
    with open_checkpoint(write_gguf(path, METADATA, {"w": ("f32", values)})) as checkpoint:
        tensor = checkpoint.tensors["w"]
        np.testing.assert_array_equal(tensor.numpy(), values)
        assert resident_bytes(path) >= values.nbytes
        checkpoint.forget_pages()
        assert resident_bytes(path) < 1 << 20
        np.testing.assert_array_equal(tensor.numpy(), values)


def resident_bytes(path: Path) -> int:
    """Of a file that is mapped; Linux only."""
    _, _, mapping = Path("/proc/self/smaps").read_text().partition(f"{path}\n")
    return int(mapping.partition("Rss:")[2].split()[0]) * 1024


def test_reads_other_alignments_and_version_2(path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    write_gguf(path, METADATA, {"a": ("f32", values), "b": ("f32", values)}, alignment=4096)
    content = bytearray(path.read_bytes())
    content[4] = 2
    path.write_bytes(content)
    np.testing.assert_array_equal(open_checkpoint(path).tensors["b"].numpy(), values)


def test_reads_all_axes_in_row_major_order(path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    tensor = open_checkpoint(write_gguf(path, METADATA, {"w": ("f16", values)})).tensors["w"]
    np.testing.assert_array_equal(tensor.numpy(), values)


def test_nested_arrays(path: Path) -> None:
    checkpoint = open_checkpoint(write(path, sound_gguf().end(bytes(384))))
    assert checkpoint.config["nested"] == [[7], ["x"]]
    assert checkpoint.config["wide"] == -5


def test_nothing_is_copied(path: Path) -> None:
    write_gguf(path, METADATA, {"w": ("f32", np.zeros((1024, 4096), np.float32))})
    tracemalloc.start()
    tensor = open_checkpoint(path).tensors["w"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert not tensor.data.flags.writeable
    assert not tensor.data.flags.owndata


def test_tensors_outlive_the_checkpoint(path: Path) -> None:
    write_gguf(path, METADATA, {"w": ("f32", np.ones(8, np.float32))})
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensors["w"]
    assert checkpoint.tensors == {}
    np.testing.assert_array_equal(tensor.numpy(), np.ones(8, np.float32))
    assert checkpoint.config["tokenizer.ggml.tokens"] == METADATA["tokenizer.ggml.tokens"]


# -- what is refused --------------------------------------------------------------------------------------------


def test_every_cut_is_refused(path: Path) -> None:
    content = sound_gguf().end(bytes(384))
    for size in range(4, len(content) - 32):  # the last tensor ends 32 bytes before the end
        refuse(path, content[:size], "ends|left|beyond")


@pytest.mark.parametrize(
    ("version", "match"), [(1, "version 1"), (4, "version 4"), (0, "version 0"), (3 << 24, "big-endian")]
)
def test_other_versions(path: Path, version: int, match: str) -> None:
    refuse(path, GgufBytes().header(0, 0, version), match, UnsupportedModelError)


@pytest.mark.parametrize("count", [2**16 + 1, 2**32, 2**63, 2**64 - 1])
def test_huge_counts_in_the_header(path: Path, count: int) -> None:
    refuse(path, GgufBytes().header(count, 0), "at most")
    refuse(path, GgufBytes().header(0, count), "at most")


@pytest.mark.parametrize("count", [2**16, 2**32, 2**60, 2**64 - 1])
@pytest.mark.parametrize("kind", [0, 4, 7, 8, 9, 10, 12])
def test_huge_arrays_allocate_nothing(path: Path, kind: int, count: int) -> None:
    tracemalloc.start()
    refuse(path, header(num_keys=1).array_key("k", kind, count, bytes(64)), "key 'k'")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_huge_strings_allocate_nothing(path: Path) -> None:
    for length in (2**24 - 1, 2**24 + 1, 2**64 - 1):
        refuse(path, header(num_keys=1).key("k", 8).number(length, 8), "key 'k'")


def test_string_array_whose_lengths_wrap_around(path: Path) -> None:
    wrapping = struct.pack("<Q", 2**64 - 8) * 3
    refuse(path, header(num_keys=1).array_key("k", 8, 3, wrapping + bytes(32)), "key 'k'")


def test_a_string_array_that_ends_inside_the_last_string(path: Path) -> None:
    content = header(num_keys=1).array_key("k", 8, 2).text("ab").number(100, 8)
    refuse(path, bytes(content.data) + b"abc", "key 'k'")


def test_deeply_nested_arrays(path: Path) -> None:
    deep = struct.pack("<IQ", 9, 1) * 100_000
    refuse(path, header(num_keys=1).key("k", 9, deep), "nested too deep")


def test_too_many_arrays(path: Path) -> None:
    count = metadata_limits.MAX_ARRAYS + 1
    refuse(path, header(num_keys=1).array_key("k", 9, count, struct.pack("<IQ", 4, 0) * count), "more than")


def test_too_many_elements(path: Path) -> None:
    count = metadata_limits.MAX_ELEMENTS + 1
    refuse(path, header(num_keys=1).array_key("k", 0, count, bytes(count)), "more than")


def test_duplicate_keys_and_tensors(path: Path) -> None:
    refuse(path, header(num_keys=2).text_key("k", "a").text_key("k", "b"), "'k'.*twice")
    twice = header(2).tensor("w", [8], 0, 0).tensor("w", [8], 0, 32)
    refuse(path, twice.end(bytes(64)), "'w'.*twice")


def test_text_that_is_not_utf8(path: Path) -> None:
    refuse(path, header(num_keys=1).key(b"\xff", 0, b"\0"), "UTF-8")
    refuse(path, header(num_keys=1).key("k", 8).text(b"\xc3"), "'k'.*UTF-8")
    refuse(path, header(num_keys=1).array_key("k", 8, 1).text(b"\xc3"), "'k'.*UTF-8")
    refuse(path, header(1).tensor(b"\xff", [8], 0, 0).end(bytes(32)), "UTF-8")


def test_bools_and_unknown_types(path: Path) -> None:
    refuse(path, header(num_keys=1).key("k", 7, b"\2"), "bool")
    refuse(path, header(num_keys=1).array_key("k", 7, 2, b"\1\2"), "bool")
    refuse(path, header(num_keys=1).key("k", 13), "unknown value type 13")
    refuse(path, header(num_keys=1).array_key("k", 13, 1), "unknown element type 13")


@pytest.mark.parametrize("alignment", [0, 3, 33, 2**32 - 1])
def test_alignment_that_is_no_power_of_two(path: Path, alignment: int) -> None:
    refuse(path, header(num_keys=1).key("general.alignment", 4).number(alignment, 4), "alignment")


def test_alignment_and_architecture_of_the_wrong_type(path: Path) -> None:
    refuse(path, header(num_keys=1).text_key("general.alignment", "32"), "alignment")
    refuse(path, header(num_keys=1).key("general.alignment", 7, b"\1"), "alignment")
    refuse(path, GgufBytes().header(0, 1).key("general.architecture", 0, b"\1"), "architecture")
    refuse(path, GgufBytes().header(0, 0), "architecture")


def test_a_part_of_a_split_model(path: Path) -> None:
    content = header(num_keys=1).key("split.count", 2, struct.pack("<H", 3))
    refuse(path, content, "split", UnsupportedModelError)


@pytest.mark.parametrize(
    ("dims", "match"),
    [
        ([], "axes"),
        ([1, 1, 1, 1, 1], "axes"),
        ([0], "shape"),
        ([8, 0], "shape"),
        ([2**63, 2], "beyond"),
        ([2**32, 2**32], "beyond"),
        ([2**64 - 1] * 4, "beyond"),
        ([17], "beyond"),
    ],
)
def test_impossible_shapes(path: Path, dims: list[int], match: str) -> None:
    with pytest.raises(CheckpointError, match=f"'w'.*{match}"):
        open_one_tensor(path, dims)


def test_rows_that_are_no_whole_blocks(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'w'.*\[2, 16\].*q4_0"):
        open_one_tensor(path, [16, 2], kind=2)


@pytest.mark.parametrize(("offset", "match"), [(16, "multiple"), (32, "beyond"), (2**64 - 32, "beyond")])
def test_impossible_offsets(path: Path, offset: int, match: str) -> None:
    with pytest.raises(CheckpointError, match=f"'w'.*{match}"):
        open_one_tensor(path, [16], offset=offset)


def test_overlapping_tensors(path: Path) -> None:
    refuse(path, header(2).tensor("a", [16], 0, 0).tensor("b", [8], 0, 32).end(bytes(64)), "'a'.*'b'.*overlap")


@pytest.mark.parametrize(("kind", "name"), [(16, "iq2_xxs"), (39, "mxfp4"), (5, "5"), (2**32 - 1, str(2**32 - 1))])
def test_unsupported_tensor_types(path: Path, kind: int, name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'w'.*{name}"):
        open_one_tensor(path, [256], kind=kind)
