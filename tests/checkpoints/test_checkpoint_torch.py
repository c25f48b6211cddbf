"""The reader of torch files: agreement with torch.load, and pickles and zips that mean harm."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roseinfer.checkpoints import Checkpoint, _unpickler, open_checkpoint, torch_file
from roseinfer.core.errors import CheckpointError, UnsupportedModelError
from tests.mutants import torch_zip

CONFIG = {"vocab_size": 11, "n_layers": 1, "d_model": 8, "dropout": 0.1, "activation": "gelu_new"}


class TinyModel(torch.nn.Module):
    """Some of the seed's parameters; the output head is tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = torch.nn.Embedding(11, 8)
        self.ln_f = torch.nn.LayerNorm(8)
        self.lm_head = torch.nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.token_embedding.weight


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def save(path: Path, model: Any, config: Any = CONFIG, **more: Any) -> Checkpoint:
    torch.save({"model": model, "config": config, **more}, path)
    return open_checkpoint(path)


def refuse(path: Path, match: str, error: type[Exception] = CheckpointError) -> None:
    with pytest.raises(error, match=match) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path))


def refuse_pickle(path: Path, pickled: bytes, match: str, **storages: bytes) -> None:
    path.write_bytes(torch_zip(pickled, storages))
    refuse(path, match)


# -- what torch.save writes -------------------------------------------------------------------------------------


def test_reads_a_trained_model(path: Path) -> None:
    model = TinyModel()
    state_dict = model.state_dict()
    checkpoint = save(path, state_dict, step=3)
    assert (checkpoint.container, checkpoint.architecture) == ("torch_file", "gpt2")
    assert checkpoint.tensors.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(checkpoint.tensors[name].numpy(), tensor.numpy())


def test_the_tied_head_shares_its_bytes(path: Path) -> None:
    tensors = save(path, TinyModel().state_dict()).tensors
    assert np.shares_memory(tensors["lm_head.weight"].data, tensors["token_embedding.weight"].data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path: Path, dtype: torch.dtype) -> None:
    weight = torch.randn(4, 6, dtype=dtype)
    tensor = save(path, {"w": weight, "p": torch.nn.Parameter(weight), "s": torch.ones((), dtype=dtype)}).tensors
    np.testing.assert_array_equal(tensor["w"].numpy(), weight.float().numpy())
    np.testing.assert_array_equal(tensor["p"].numpy(), weight.float().numpy())
    assert tensor["s"].shape == ()


def test_untyped_storages(path: Path) -> None:
    """torch writes the newer integers as bytes with a dtype (_rebuild_tensor_v3)."""
    tensor = save(path, {"w": torch.arange(6).to(torch.uint16).reshape(2, 3).T}).tensors["w"]
    assert (tensor.format, tensor.shape) == ("u16", (3, 2))
    assert tensor.data.view(np.uint16).tolist() == [0, 3, 1, 4, 2, 5]


def test_dtypes_that_no_graph_reads(path: Path) -> None:
    assert save(path, {"mask": torch.ones(3, dtype=torch.bool)}).tensors["mask"].format == "bool"
    torch.save({"model": {"w": torch.ones(3, dtype=torch.float64)}}, path)
    refuse(path, "'w'.*f64", UnsupportedModelError)


def test_views_into_a_storage(path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    views = {
        "transposed": base.T,
        "columns": base[:, 3:7],
        "rows": base[1:3],
        "steps": base[::2, ::3],
        "permuted": base.reshape(5, 3, 4).permute(2, 0, 1),
    }
    tensors = save(path, views).tensors
    for name, view in views.items():
        np.testing.assert_array_equal(tensors[name].numpy(), view.numpy())
    assert not tensors["rows"].data.flags.owndata


def test_contiguous_tensors_are_not_copied(path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(1024, 4096)}, "config": CONFIG}, path)
    tracemalloc.start()
    tensor = open_checkpoint(path).tensors["w"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert not tensor.data.flags.writeable


def test_config_gets_the_defaults(path: Path) -> None:
    config = save(path, TinyModel().state_dict()).config
    assert config == {**torch_file.CONFIG_DEFAULTS, **CONFIG}
    torch.save({"model": {}}, path)
    assert open_checkpoint(path).config == torch_file.CONFIG_DEFAULTS


def test_configs_with_nested_plain_values(path: Path) -> None:
    config = {"a": [1, (2, 3)], "b": {"c": None, "d": True}, "e": -(2**70)}
    assert save(path, {}, config).config.items() >= {"b": {"c": None, "d": True}, "e": -(2**70)}.items()
    assert open_checkpoint(path).config["a"] == [1, [2, 3]]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."])
def test_wrappers_are_taken_off(path: Path, prefix: str) -> None:
    state_dict = {prefix + name: tensor for name, tensor in TinyModel().state_dict().items()}
    checkpoint = save(path, state_dict)
    assert "token_embedding.weight" in checkpoint.tensors
    assert all(tensor.name == name for name, tensor in checkpoint.tensors.items())


def test_names_that_meet_without_their_wrappers(path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2), "module.w": torch.ones(2)}}, path)
    refuse(path, r"'module\.w'.*twice")


def test_wrapped_inside(path: Path) -> None:
    state_dict = {"module.blocks.0._orig_mod.ln1.weight": torch.ones(2)}
    assert save(path, state_dict).tensors.keys() == {"blocks.0.ln1.weight"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(path: Path, protocol: int) -> None:
    state_dict = TinyModel().state_dict()
    torch.save({"model": state_dict, "config": CONFIG}, path, pickle_protocol=protocol)
    checkpoint = open_checkpoint(path)
    np.testing.assert_array_equal(checkpoint.tensors["ln_f.weight"].numpy(), state_dict["ln_f.weight"].numpy())
    assert checkpoint.config["activation"] == "gelu_new"


def training_state() -> dict[str, Any]:
    """What trainers keep beside a model."""
    model = TinyModel()
    optimizer = torch.optim.AdamW(model.parameters())
    model.lm_head(model.ln_f(model.token_embedding(torch.tensor([1, 2])))).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    extra = {
        "rng": [torch.get_rng_state(), np.random.default_rng(0).bit_generator.state, random.getstate()],
        "legacy_rng": np.random.get_state(),
        "numbers": [np.float32(1), np.arange(3), Counter("ab"), 1.5],
        "empty": torch.empty(0),
        "expanded": torch.ones(1).expand(5),
        "arguments": argparse.Namespace(path=Path("x"), device=torch.device("cpu"), dtype=torch.bfloat16),
    }
    return {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "step": 7, "extra": extra}


def test_training_state_is_read_over(path: Path) -> None:
    checkpoint = save(path, TinyModel().state_dict(), **training_state())
    assert len(checkpoint.tensors) == 4
    assert checkpoint.config == {**torch_file.CONFIG_DEFAULTS, **CONFIG}


def test_large_archives_with_zip64_records(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": {"w": torch.arange(6.0)}, "config": CONFIG}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    assert b"PK\6\6" in path.read_bytes()
    np.testing.assert_array_equal(open_checkpoint(path).tensors["w"].numpy(), np.arange(6, dtype=np.float32))


# -- models that are none ---------------------------------------------------------------------------------------


def test_files_without_a_model(path: Path) -> None:
    torch.save([1, 2], path)
    refuse(path, "list where a dict is wanted")
    torch.save({"config": CONFIG}, path)
    refuse(path, 'no "model"')
    torch.save({1: 2}, path)
    refuse(path, "not a string")
    torch.save({"model": {"w": 3}}, path)
    refuse(path, "model: tensor 'w': is a int")
    torch.save({"model": {"w": np.arange(3)}}, path)
    refuse(path, "tensor 'w'.*numpy")


@pytest.mark.parametrize("value", [torch.ones(1), np.float32(1), Path("x"), {1: 2}, b"raw"])
def test_configs_that_are_not_plain(path: Path, value: Any) -> None:
    torch.save({"model": {}, "config": {"vocab_size": value}}, path)
    refuse(path, "config: 'vocab_size'")


def test_torch_files_of_other_kinds(path: Path) -> None:
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)
    refuse(path, "old format", UnsupportedModelError)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/constants.pkl", b"")
    refuse(path, "TorchScript", UnsupportedModelError)
    path.write_bytes(torch_zip(b"\x80\x02}.", {}, byteorder=b"big"))
    refuse(path, "big-endian", UnsupportedModelError)


# -- pickles that mean harm -------------------------------------------------------------------------------------


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(victim: Path) -> dict[str, Any]:
    command = f"touch {victim}"
    return {
        "system": Attack(os.system, command),
        "eval": Attack(eval, f"open({str(victim)!r}, 'w')"),
        "exec": Attack(exec, f"open({str(victim)!r}, 'w')"),
        "getattr": Attack(getattr, Attack(__import__, "os"), "system"),
        "open": Attack(open, str(victim), "w"),
        "load": Attack(torch.load, str(victim)),
        "from_bytes": Attack(torch.storage._load_from_bytes, b"x"),
        "nested": Attack(OrderedDict, Attack(os.system, command)),
        "iterator": Attack(map, os.system, [command]),
    }


@pytest.mark.parametrize("kind", attacks(Path("x")))
@pytest.mark.parametrize("place", ["model", "extra"])
def test_calls_are_refused_and_named(tmp_path: Path, kind: str, place: str) -> None:
    path, victim = tmp_path / "model.pt", tmp_path / "victim"
    torch.save({"model": {}, "config": {}, place: {"x": attacks(victim)[kind]}}, path)
    refuse(path, "which is not allowed")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (b"cos\nsystem\nX\x02\0\0\0id\x85R.", "'os.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
        (b"\x80\x04\x8c\x05torch\x8c\x0e_utils.os.name\x93.", "not allowed"),
        (b"(ios\nsystem\n.", "opcode b'i'"),
        (b"(cos\nsystem\no.", "'os.system'"),
        (b"(ctorch\nSize\no.", "opcode b'o'"),
        (b"\x82\x01.", "opcode b'\\\\x82'"),
        (b"\x83\x01\0.", "opcode"),
        (b"\x84\x01\0\0\0.", "opcode"),
        (b"Pid\n.", "opcode b'P'"),
        (b"I1\n.", "opcode b'I'"),
        (b"\x97.", "opcode"),
        (b"0.", "opcode b'0'"),
        (b"\x8b\xff\xff\xff\x7f.", "opcode"),
        (b"\x8a\xff" + b"\xff" * 255 + b".", "integer of 255 bytes"),
        (b"X\xff\xff\xff\xffabc.", "ends early"),
        (b"B\xff\xff\xff\xffabc.", "ends early"),
        (b"X\x01\0\0\0\xff.", "UTF-8"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.", "frame"),
        (b"\x80\x01N.", "protocol 1"),
        (b"\x80\xffN.", "protocol 255"),
        (b".", "empty stack"),
        (b"", "ends early"),
        (b"N", "ends early"),
        (b"NN.", "left over"),
        (b"N.N", "left over"),
        (b"(N.", "left over"),
        (b"\x86.", "empty stack"),
        (b"N(\x85.", "empty stack"),
        (b"t.", "mark"),
        (b"h\0.", "never stored"),
        (b"j\xff\xff\xff\xff.", "never stored"),
        (b"q\0.", "empty stack"),
        (b"]NNs.", "treats a list"),
        (b"}(Nu.", "without a value"),
        (b"}Na.", "treats a Pairs"),
        (b"]Nb.", "treats a list"),
        (b"NNR.", "calls something without a tuple"),
        (b"N)R.", "calls a NoneType"),
        (b"ctorch\nFloatStorage\n)R.", "not allowed"),
        (b"ccollections\nOrderedDict\nctorch\nSize\nR.", "without a tuple"),
        (b"ccollections\nOrderedDict\nN\x85R.", "OrderedDict"),
        (b"c" + b"a" * 1000 + b"\nb\n.", "does not end"),
        (b"NQ.", "five values"),
        (b"(NNNNNtQ.", "persistent id"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "typed storage"),
        (b"ctorch._utils\n_rebuild_parameter\nNNN\x87R.", "from a tensor"),
    ],
)
def test_opcodes(path: Path, pickled: bytes, match: str) -> None:
    refuse_pickle(path, pickled, f"data.pkl: .*{match}")


def nested_value(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] * 10
    return value


def test_shared_values_are_counted_each_time(path: Path) -> None:
    """Billion laughs: each level of lists holds the one below ten times."""
    torch.save({"model": {}, "config": {"a": nested_value(6)}}, path)
    assert path.stat().st_size < 4096
    refuse(path, "'a'.*too many")


def test_a_value_that_holds_itself(path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    torch.save({"model": {}, "config": {"a": loop}}, path)
    refuse(path, "'a'.*nested")


def test_work_stack_and_memo_are_bounded(path: Path) -> None:
    refuse_pickle(path, b"N" * (_unpickler.MAX_STACK + 1), "stack deeper")
    refuse_pickle(path, b"(" * (_unpickler.MAX_STACK + 1), "stack deeper")
    refuse_pickle(path, b"N" + b"\x94" * (_unpickler.MAX_MEMO + 1), "memo")
    refuse_pickle(path, b"N" + b"\x85" * _unpickler.MAX_OPS, "operations")
    refuse_pickle(path, b"B" + struct.pack("<I", _unpickler.MAX_BYTES) + bytes(_unpickler.MAX_BYTES), "at most")


@pytest.mark.parametrize("operation", [b"\x85", b"]\x85", b"}N\x86", b"]q\1", b"\x8c\0\x8c\0\x86", b"\x80\x02"])
def test_the_most_work_ends_in_time(path: Path, operation: bytes) -> None:
    """Deep and wide values are dropped without recursion, too."""
    start = time.process_time()
    refuse_pickle(path, b"N" + operation * (_unpickler.MAX_OPS // max(1, len(operation) // 2)), "stack|operations")
    assert time.process_time() - start < 2


def rebuilt(storage_type: str, count: int, offset: Any, shape: Any, strides: Any) -> bytes:
    """A file's pickle with one tensor "w" over storage 0."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            kind = getattr(torch, storage_type)
            return ("storage", kind, "0", "cpu", count) if isinstance(value, Storage) else None

    arguments = (Storage(), offset, shape, strides, False, OrderedDict())
    buffer = io.BytesIO()
    attack = Attack(torch._utils._rebuild_tensor_v2, *arguments)
    Pickler(buffer, protocol=2).dump({"model": {"w": attack}})
    return buffer.getvalue()


def test_a_rebuilt_tensor_is_sound(path: Path) -> None:
    path.write_bytes(torch_zip(rebuilt("FloatStorage", 6, 1, (5,), (1,)), {"0": bytes(range(24))}))
    assert open_checkpoint(path).tensors["w"].data.tolist() == list(range(4, 24))


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides", "match"),
    [
        (6, 0, (7,), (1,), "beyond its storage"),
        (6, 1, (6,), (1,), "beyond its storage"),
        (6, 0, (2, 3), (4, 1), "beyond its storage"),
        (6, 0, (2**47, 2**47), (2**47, 1), "beyond its storage"),
        (6, 0, (2**20, 2**20), (0, 0), "overlap"),
        (6, 0, (3, 3), (1, 1), "overlap"),
        (6, 0, (2, 3), (2, 1), "overlap"),
        (6, -1, (2,), (1,), "range"),
        (6, 0, (2,), (-1,), "range"),
        (6, 0, (-2,), (1,), "range"),
        (6, 0, (0,), (1,), "range"),
        (6, 0, (2**64,), (1,), "range"),
        (6, 0.0, (2,), (1,), "range"),
        (6, 0, (True,), (1,), "range"),
        (6, 0, (2, 2), (1,), "axes"),
        (6, 0, [2], (1,), "tuple"),
        (6, 0, (1,) * 9, (1,) * 9, "at most"),
        (5, 0, (2,), (1,), "missing or not of the size"),
        (2**47, 0, (2,), (1,), "missing or not of the size"),
        (-6, 0, (2,), (1,), "range"),
    ],
)
def test_tensors_outside_their_storage(
    path: Path, count: int, offset: Any, shape: Any, strides: Any, match: str
) -> None:
    refuse_pickle(path, rebuilt("FloatStorage", count, offset, shape, strides), match, **{"0": bytes(24)})


def test_a_missing_storage(path: Path) -> None:
    refuse_pickle(path, rebuilt("FloatStorage", 6, 0, (6,), (1,)), "missing", **{"1": bytes(24)})


def test_copies_are_bounded_by_the_file(path: Path) -> None:
    base = torch.zeros(512, 512)
    torch.save({"model": {f"w{i}": base.T for i in range(100)}}, path)
    refuse(path, "larger in sum")


# -- zips that mean harm ----------------------------------------------------------------------------------------


def test_compressed_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(10_000_000))
    refuse(path, "compressed")


def test_entries_of_one_name(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"}.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("m/data.pkl", b"}.")
    refuse(path, "'m/data.pkl': is there twice")


def test_entries_that_share_their_bytes(path: Path) -> None:
    """The overlapping files of a zip bomb: a second directory entry for the first local header."""
    content = bytearray(torch_zip(b"\x80\x02}.", {}))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        directory = archive.start_dir
    first = content.index(b"PK\1\2", directory)
    second = content.index(b"PK\1\2", first + 4)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    path.write_bytes(content)
    refuse(path, "headers differ|overlap")


@pytest.mark.parametrize("cut", [1, 10, 22, 100, 200])
def test_archives_cut_short(path: Path, cut: int) -> None:
    path.write_bytes(torch_zip(b"\x80\x02}.", {"0": bytes(100)})[:-cut])
    refuse(path, "zip")


def test_zips_that_torch_did_not_write(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", b"<x/>")
    refuse(path, r"no single data\.pkl")


def test_torch_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": TinyModel().state_dict()}, path)
    code = f"""
import sys
from roseinfer.checkpoints import open_checkpoint
open_checkpoint({str(path)!r})
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
