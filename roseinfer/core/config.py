"""Every setting of roseinfer, declared once: a flag, an environment variable and a TOML key each.

A field of `Config` is the declaration. `max_model_len` is `--max-model-len` on the command line,
`ROSEINFER_MAX_MODEL_LEN` in the environment and `max_model_len` in `roseinfer.toml`. A flag wins over the
environment, the environment over the file, the file over the default. Nothing else reads these variables.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roseinfer.core.errors import ConfigError
from roseinfer.core.limits import BODY_BYTES, GRAMMAR_SECONDS, SEED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "ROSEINFER_"
CONFIG_FILE = "roseinfer.toml"
MAX_CONFIG_BYTES = 1 << 20

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)
_EXPONENTS = {"k": 1, "m": 2, "g": 3, "t": 4}
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Kind:
    """How a setting is written. `parse` takes text or a TOML value; a wrong one is a `ValueError`."""

    metavar: str
    parse: Callable[[object], Any]
    is_switch: bool = False


def text() -> Kind:
    def parse(value: object) -> str:
        if not isinstance(value, str | Path) or not str(value):
            raise ValueError(f"must be text that is not empty, got {value!r}")
        return str(value)

    return Kind("TEXT", parse)


def path() -> Kind:
    return Kind("PATH", lambda value: os.path.expanduser(text().parse(value)))


def integer(low: int, high: int = 2**31 - 1) -> Kind:
    def parse(value: object) -> int:
        number = _whole_number(value)
        if not low <= number <= high:
            raise ValueError(f"must be between {low} and {high}, got {number}")
        return number

    return Kind("INTEGER", parse)


def switch() -> Kind:
    def parse(value: object) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _SWITCH:
            return _SWITCH[value.lower()]
        raise ValueError(f"must be true or false, got {value!r}")

    return Kind("", parse, is_switch=True)


def choice(*names: str) -> Kind:
    def parse(value: object) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}, got {value!r}")
        return str(value)

    return Kind("|".join(names), parse)


def size() -> Kind:
    def parse(value: object) -> int:
        return parse_size(value)

    return Kind("SIZE", parse)


def auto_or(kind: Kind) -> Kind:
    """`auto` is written where roseinfer is to choose; it reads as None."""
    return Kind(kind.metavar, lambda value: None if value == "auto" else kind.parse(value))


def parse_size(value: object) -> int:
    """Bytes of `1073741824`, `"1GiB"`, `"1.5G"` (= GiB) or `"500MB"` (powers of 1000). At least one byte."""
    if isinstance(value, int) and not isinstance(value, bool):
        num_bytes = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        num_bytes = (
            int(float(match[1]) * _unit(value, match)) if "." in match[1] else int(match[1]) * _unit(value, match)
        )
    else:
        raise ValueError(f"must be a size such as 1GiB, 512MiB or a number of bytes, got {value!r}")
    if not 1 <= num_bytes < 2**63:
        raise ValueError(f"must be between 1 byte and 2**63 bytes, got {value!r}")
    return num_bytes


def _unit(value: str, match: re.Match[str]) -> int:
    if not match[2]:
        return 1
    is_decimal = not match[3] and value.strip().lower().endswith("b")
    return int((1000 if is_decimal else 1024) ** _EXPONENTS[match[2].lower()])


def _whole_number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value.strip()):
        return int(value)
    raise ValueError(f"must be a whole number, got {value!r}")


def _setting(default: Any, kind: Kind, section: str, help: str, *, is_secret: bool = False) -> Any:
    metadata = {"kind": kind, "section": section, "help": help}
    return dataclasses.field(default=default, metadata=metadata, repr=not is_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, checked. Build it with `load_config`."""

    model: str = _setting(
        "smollm2-135m",
        text(),
        "model",
        "A .gguf file, a safetensors folder, a torch file, a name from `roseinfer list` or a hub id.",
    )
    tokenizer: str | None = _setting(
        None, text(), "model", "A tokenizer.json, a folder, a .gguf file or a hub id. [default: the model's own]"
    )
    cache_dir: str = _setting(
        "~/.cache/roseinfer", path(), "model", "Where fetched models are kept. [default: ~/.cache/roseinfer]"
    )

    device: str = _setting(
        "auto",
        choice("auto", "cpu", "cuda"),
        "engine",
        "Where the model runs; auto = on the GPU if there is one and roseinfer[cuda] is installed.",
    )
    dtype: str = _setting(
        "auto",
        choice("auto", "float32", "bfloat16", "float16"),
        "engine",
        "Precision of activations and unquantised weights.",
    )
    weight_dtype: str = _setting(
        "auto",
        choice("auto", "fp8"),
        "engine",
        "fp8 holds unquantised matrices in 8 bits (GPU only).",
    )
    kv_dtype: str = _setting(
        "auto",
        choice("auto", "float16", "bfloat16", "float32", "q8"),
        "engine",
        "Precision of the KV cache; q8 on the CPU only.",
    )
    threads: int = _setting(0, integer(0, 1024), "engine", "CPU threads that compute; 0 = one per core.")
    isa: str = _setting(
        "auto",
        choice("auto", "scalar", "avx2", "avx512", "avx512_bf16"),
        "engine",
        "Instruction set of the CPU kernels; auto = the best there is.",
    )
    max_model_len: int | None = _setting(
        None, auto_or(integer(1)), "engine", "Longest prompt plus answer, in tokens. [default: the model's]"
    )
    max_batch_tokens: int | None = _setting(
        None,
        auto_or(integer(1, 1 << 20)),
        "engine",
        "Most tokens that one step computes. [default: 512 on the CPU, 4096 on a GPU]",
    )
    max_running: int = _setting(64, integer(1, 1 << 16), "engine", "Most requests that are computed together.")
    kv_cache_memory: int | None = _setting(
        None, auto_or(size()), "engine", 'Memory for the KV cache: bytes or "1GiB". [default: chosen from the model]'
    )
    prefix_cache: bool = _setting(True, switch(), "engine", "Reuse the KV blocks of prompts that begin alike.")
    fast: bool = _setting(
        False,
        switch(),
        "engine",
        "Let answers depend on what is computed beside them, where that is faster (GPU only, no effect on the CPU).",
    )
    seed: int | None = _setting(
        None,
        auto_or(integer(0, SEED.most)),
        "engine",
        "Seed of requests that name none. [default: a new one each time]",
    )

    host: str = _setting("127.0.0.1", text(), "server", "Address to listen on.")
    port: int = _setting(8000, integer(0, 65535), "server", "Port to listen on; 0 = any free one.")
    api_key: str | None = _setting(
        None, text(), "server", "Key that callers must send as `Authorization: Bearer KEY`.", is_secret=True
    )
    api_key_file: str | None = _setting(None, path(), "server", "File with one API key per line.")
    served_model_name: str | None = _setting(None, text(), "server", "Name in replies. [default: the model's]")
    max_queue: int = _setting(
        256,
        integer(0, 1 << 20),
        "server",
        "Most requests that wait; more are refused with 503, or 429 for a key that holds more than its share.",
    )
    max_connections: int = _setting(4096, integer(1, 1 << 20), "server", "Most connections; more are refused with 503.")
    allowed_hosts: str | None = _setting(
        None,
        auto_or(text()),
        "server",
        "Host names to answer to, with commas between; * = any. [default: local names on a loopback host, else any]",
    )
    max_body_size: int = _setting(BODY_BYTES.most, size(), "server", 'Largest body of a request: bytes or "8MiB".')
    grammar_timeout: int = _setting(
        int(GRAMMAR_SECONDS.most), integer(1, 60), "engine", "Seconds in which a grammar is compiled, or else refused."
    )
    request_timeout: int = _setting(
        0, integer(0, 7 * 86400), "server", "Seconds that a request may take, waiting included; 0 = any."
    )
    drain_timeout: int = _setting(
        30, integer(0, 86400), "server", "Seconds that running requests have to finish when the server is stopped."
    )
    engine_process: bool = _setting(
        True, switch(), "server", "Run the engine in a process of its own, which is started anew if it dies."
    )
    log_level: str = _setting("info", choice("debug", "info", "warning", "error"), "server", "How much is logged.")
    access_log: bool = _setting(True, switch(), "server", "Write a line of JSON about each request to standard output.")
    metrics_prefix: str = _setting(
        "roseinfer", choice("roseinfer", "vllm", "both"), "server", "What names in /metrics begin with."
    )

    @property
    def models_dir(self) -> Path:
        return Path(self.cache_dir).expanduser() / "models"


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting as the doors see it."""

    name: str
    default: Any
    kind: Kind
    section: str  # model | engine | server
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()

    def read(self, raw: object, source: str) -> Any:
        """The checked value of `raw`, which came from `source` (a flag, a variable, a key).

        Raises ConfigError naming the source.
        """
        try:
            return self.kind.parse(raw)
        except ValueError as error:
            raise ConfigError(f"{source} {error}") from None


def _knob(field: dataclasses.Field[Any]) -> Knob:
    meta = field.metadata
    return Knob(field.name, field.default, meta["kind"], meta["section"], meta["help"])


KNOBS: dict[str, Knob] = {field.name: _knob(field) for field in dataclasses.fields(Config)}


def knobs_of(*names: str) -> list[Knob]:
    """Settings by their section or their own name."""
    return [knob for knob in KNOBS.values() if knob.section in names or knob.name in names]


def load_config(
    flags: Mapping[str, object] | None = None,
    *,
    config_file: str | Path | None = None,
    environ: Mapping[str, str] = os.environ,
    defaults: Mapping[str, object] | None = None,
) -> Config:
    """Settings from flags, the environment, a TOML file and defaults, in this order of precedence.

    Args:
        flags: by field name; None means that the flag was not given.
        config_file: a TOML file; otherwise `$ROSEINFER_CONFIG`, otherwise `roseinfer.toml` if it is here.
        defaults: what a caller's command line has for a default where it is not ours.

    Raises ConfigError, naming the flag, variable or key, for an unknown name or a wrong value.
    """
    values: dict[str, Any] = {"cache_dir": _default_cache_dir(environ), **(defaults or {})}
    values |= _from_file(_find_file(config_file, environ))
    values |= _from_environment(environ)
    values |= _from_flags(flags or {})
    return Config(**values)


def load_api_keys(config: Config) -> tuple[str, ...]:
    """The keys of `api_key` and `api_key_file` together; none means that the server asks for none."""
    keys = [config.api_key.strip()] if config.api_key and config.api_key.strip() else []
    if config.api_key_file is not None:
        keys += _keys_in_file(Path(config.api_key_file))
    return tuple(keys)


def _keys_in_file(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file {file} cannot be read: {error}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file {file} holds no key")
    return keys


def _default_cache_dir(environ: Mapping[str, str]) -> str:
    root = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(root).expanduser() / "roseinfer")


def _find_file(config_file: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    if named := config_file or environ.get(ENV_PREFIX + "CONFIG"):
        return Path(named).expanduser()
    here = Path(CONFIG_FILE)
    return here if here.is_file() else None


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    table = _read_toml(file)
    _refuse_unknown(table, str(file))
    return {name: KNOBS[name].read(raw, f"{file}: {name}") for name, raw in table.items()}


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{file} is larger than {MAX_CONFIG_BYTES} bytes, which is no configuration")
        return tomllib.loads(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    given = {knob: environ.get(knob.variable) for knob in KNOBS.values()}
    return {knob.name: knob.read(raw, knob.variable) for knob, raw in given.items() if raw}


def _from_flags(flags: Mapping[str, object]) -> dict[str, Any]:
    _refuse_unknown(flags, "settings")
    return {name: KNOBS[name].read(raw, KNOBS[name].flag) for name, raw in flags.items() if raw is not None}


def _refuse_unknown(names: Iterable[str], source: str) -> None:
    unknown = sorted(set(names) - set(KNOBS))
    if unknown:
        raise ConfigError(f"{source}: unknown key {', '.join(unknown)}; known are {', '.join(KNOBS)}")
