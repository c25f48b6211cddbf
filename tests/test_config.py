"""Settings: one declaration, four sources, errors that name the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roseinfer.core.config import KNOBS, Config, load_api_keys, load_config, parse_size
from roseinfer.core.errors import ConfigError


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(**flags: object) -> Config:
    return load_config(flags, environ={})


def test_defaults() -> None:
    config = load()
    assert (config.model, config.host, config.port) == ("smollm2-135m", "127.0.0.1", 8000)
    assert (config.max_running, config.max_batch_tokens, config.max_queue) == (64, None, 256)
    assert config.prefix_cache
    assert config.kv_cache_memory is None


def test_each_source_beats_the_next(in_empty_folder: Path) -> None:
    (in_empty_folder / "roseinfer.toml").write_text("port = 1\nhost = 'toml'\nthreads = 3\n")
    environ = {"ROSEINFER_PORT": "2", "ROSEINFER_HOST": "env"}
    config = load_config({"port": 3}, environ=environ, defaults={"log_level": "error", "threads": 9})
    assert (config.port, config.host, config.threads, config.log_level) == (3, "env", 3, "error")


def test_a_flag_that_was_not_given_is_no_value() -> None:
    assert load_config({"port": None}, environ={"ROSEINFER_PORT": "81"}).port == 81


def test_an_empty_variable_is_no_value() -> None:
    assert load_config(environ={"ROSEINFER_API_KEY": ""}).api_key is None


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_named_file(in_empty_folder: Path, how: str) -> None:
    file = in_empty_folder / "other.toml"
    file.write_text('kv_cache_memory = "1GiB"\nprefix_cache = false\nmax_model_len = "auto"\n')
    if how == "argument":
        config = load_config(config_file=file, environ={})
    else:
        config = load_config(environ={"ROSEINFER_CONFIG": str(file)})
    assert (config.kv_cache_memory, config.prefix_cache, config.max_model_len) == (2**30, False, None)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"prot = 1", "prot"),
        (b"port = true", "port"),
        (b"port = 1.5", "port"),
        (b"port = 65536", "port"),
        (b"port = []", "port"),
        (b"host = 1", "host"),
        (b"prefix_cache = 1", "prefix_cache"),
        (b"device = 'tpu'", "device"),
        (b"kv_cache_memory = 'much'", "kv_cache_memory"),
        (b"[server]\nport = 1", "server"),
        (b"port = ", "roseinfer.toml"),
        (b"\xff", "roseinfer.toml"),
        (b"a = " + b"[" * 100_000, "roseinfer.toml"),
        (b"#" * (1 << 20) + b"#", "roseinfer.toml"),
    ],
)
def test_bad_file_names_the_key(in_empty_folder: Path, content: bytes, named: str) -> None:
    (in_empty_folder / "roseinfer.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        load()


def test_missing_named_file() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_config(config_file="nowhere.toml", environ={})


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("port", "-1"),
        ("port", "8000.0"),
        ("port", "9" * 5000),
        ("port", ""),
        ("device", "gpu"),
        ("dtype", "int8"),
        ("isa", "AVX2"),
        ("threads", "many"),
        ("max_model_len", "0"),
        ("max_batch_tokens", "0"),
        ("weight_dtype", "int4"),
        ("fast", "very"),
        ("max_running", "0"),
        ("seed", "-1"),
        ("seed", str(2**63)),
        ("prefix_cache", "perhaps"),
        ("kv_cache_memory", "0"),
        ("host", ""),
    ],
)
def test_bad_value_names_flag_and_variable(name: str, raw: str) -> None:
    with pytest.raises(ConfigError, match=KNOBS[name].flag):
        load(**{name: raw})
    if raw:
        with pytest.raises(ConfigError, match=KNOBS[name].variable):
            load_config(environ={KNOBS[name].variable: raw})


def test_unknown_setting() -> None:
    with pytest.raises(ConfigError, match="max_lenght"):
        load(max_lenght=3)


@pytest.mark.parametrize("name", KNOBS)
def test_every_default_is_a_legal_value(name: str) -> None:
    knob = KNOBS[name]
    if knob.default is not None:
        assert knob.read(knob.default, name) is not None
    assert knob.help.endswith((".", "]"))
    assert knob.section in ("model", "engine", "server")


@pytest.mark.parametrize(
    ("written", "num_bytes"),
    [
        (1, 1),
        ("4096", 4096),
        ("4096B", 4096),
        ("1K", 1024),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("512MiB", 512 * 2**20),
        (" 2 GiB ", 2 * 2**30),
        ("1.5g", 3 * 2**29),
        ("500MB", 500_000_000),
        ("1TB", 10**12),
    ],
)
def test_sizes(written: Any, num_bytes: int) -> None:
    assert parse_size(written) == num_bytes


@pytest.mark.parametrize(
    "written", [0, -1, True, 1.5, None, "", "GiB", "-1", "1 PiB", "1e9", "0.1", "9" * 18 + "T", "1i"]
)
def test_bad_sizes(written: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_size(written)


def test_cache_dir_follows_xdg() -> None:
    assert load_config(environ={"XDG_CACHE_HOME": "/x"}).models_dir == Path("/x/roseinfer/models")
    both = {"XDG_CACHE_HOME": "/x", "ROSEINFER_CACHE_DIR": "/y"}
    assert load_config(environ=both).models_dir == Path("/y/models")


def test_keys_come_from_both_places(in_empty_folder: Path) -> None:
    file = in_empty_folder / "keys"
    file.write_text("# who\none\n\n two \n")
    assert load_api_keys(load(api_key="zero", api_key_file=str(file))) == ("zero", "one", "two")
    assert load_api_keys(load()) == ()


def test_a_key_file_without_keys_is_an_error(in_empty_folder: Path) -> None:
    file = in_empty_folder / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="keys holds no key"):
        load_api_keys(load(api_key_file=str(file)))
    with pytest.raises(ConfigError, match="missing"):
        load_api_keys(load(api_key_file="missing"))


def test_the_key_is_not_printed() -> None:
    assert "sesame" not in repr(load(api_key="sesame"))
