"""`serve` without the command line library: the same settings, and everything else left to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from roseinfer import cli
from roseinfer.__main__ import main, plain_serve_flags
from roseinfer.core.config import KNOBS, Config, Knob, load_config
from roseinfer.core.errors import ConfigError

SERVE_KNOBS = [knob for knob in KNOBS.values() if knob.name != "model"]
VALUES = {"INTEGER": "7", "SIZE": "1GiB", "TEXT": "a=b c", "PATH": "some/where"}


def value_of(metavar: str) -> str:
    return VALUES.get(metavar, metavar.rpartition("|")[2])  # the last of several choices


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """What was to be served, by whatever way."""
    configs: list[Config] = []
    monkeypatch.setattr("roseinfer.server.runner.serve", configs.append)
    monkeypatch.chdir(tmp_path)
    return configs


def served_by_cli(served: list[Config], arguments: list[str]) -> Config:
    cli.app(["serve", *arguments], standalone_mode=False)
    return served.pop()


def served_by_main(served: list[Config], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(sys, "argv", ["roseinfer", "serve", *arguments])
    monkeypatch.delattr(cli, "main")  # nobody asks it
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    return served.pop()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["model.gguf"],
        ["model.gguf", "--port", "81"],
        ["--port", "81", "model.gguf", "--host=::1"],
        ["--port", "81", "--port", "82"],
        ["--no-prefix-cache", "--", "model.gguf"],
        ["--no-prefix-cache", "--prefix-cache"],
    ],
)
def test_both_ways_serve_the_same(served: list[Config], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = served_by_cli(served, arguments)
    assert served_by_main(served, arguments, monkeypatch) == expected


@pytest.mark.parametrize("arguments", [["--api-key", ""], ["--api-key="], ["--port", "-1"], ["--device=tpu"], [""]])
def test_both_ways_refuse_the_same(served: list[Config], arguments: list[str]) -> None:
    with pytest.raises(ConfigError) as expected:
        served_by_cli(served, arguments)
    with pytest.raises(ConfigError) as refused:
        load_config(plain_serve_flags(["serve", *arguments]))
    assert str(refused.value) == str(expected.value)


@pytest.mark.parametrize("knob", SERVE_KNOBS, ids=lambda knob: knob.name)
def test_both_ways_know_every_setting(served: list[Config], knob: Knob, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [knob.flag] if knob.kind.is_switch else [knob.flag, value_of(knob.kind.metavar)]
    expected = served_by_cli(served, arguments)
    assert getattr(expected, knob.name) is not None
    assert served_by_main(served, arguments, monkeypatch) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--version"],
        ["generate", "-p", "x"],
        ["serve", "--help"],
        ["serve", "-h"],
        ["serve", "--config", "x.toml"],
        ["serve", "--port"],
        ["serve", "--por", "81"],
        ["serve", "--prefix-cache=yes"],
        ["serve", "a", "b"],
        ["serve", "--nope", "1"],
        ["serve", "-x"],
    ],
)
def test_what_is_not_plain_is_left_to_the_command_line(arguments: list[str]) -> None:
    assert plain_serve_flags(arguments) is None


def test_a_plain_serve_does_not_import_the_library(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "roseinfer", "serve", "no-such-model", "--port", "0"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "error: there is no model 'no-such-model'" in done.stderr
    assert "roseinfer.server.runner" in done.stderr
    assert "typer" not in done.stderr
