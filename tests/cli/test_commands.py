"""The `roseinfer` command: help, reports, errors of one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import roseinfer
from roseinfer.catalog import CATALOG
from roseinfer.core.config import KNOBS
from tests.cli.processes import Run
from tests.fake_model import recite


def lines_of_error(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("command", [[], ["serve"], ["generate"], ["inspect"], ["pull"], ["list"], ["doctor"]])
def test_help_fits_80_columns(run: Run, command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.startswith("Usage: roseinfer")
    assert done.stdout == run(*command, "-h").stdout


def test_every_setting_is_a_flag_of_serve(run: Run) -> None:
    shown = run("serve", "--help").stdout
    for knob in KNOBS.values():
        assert knob.name == "model" or re.search(rf"{knob.flag}\b", shown), knob.flag
    assert "--no-prefix-cache" in shown


def test_help_shows_the_default_model(run: Run) -> None:
    assert "[default: smollm2-135m]" in run("serve", "--help").stdout


@pytest.mark.parametrize("command", ["pull", "list", "doctor"])
def test_commands_take_only_settings_that_they_use(run: Run, command: str) -> None:
    shown = run(command, "--help").stdout
    assert "--cache-dir" in shown
    assert "--tokenizer" not in shown
    assert "--prefix-cache" not in shown


def test_help_needs_no_heavy_import(environment: dict[str, str]) -> None:
    heavy = {"numpy", "fastapi", "pydantic", "rich", "tokenizers"}
    code = f"import sys, roseinfer.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"roseinfer {roseinfer.__version__}\n"


def test_list_shows_the_catalogue(run: Run) -> None:
    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(CATALOG)
    assert max(map(len, lines)) <= 80


def test_doctor(run: Run) -> None:
    done = run("doctor", "--threads", "1")
    assert done.returncode == 0, done.stderr
    facts = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert facts["roseinfer"] == roseinfer.__version__
    assert facts["threads"].startswith("1 of ")
    assert {"python", "cpu", "kernels", "gpu", "memory", "cache", "numpy", "torch", "triton"} <= facts.keys()


def test_doctor_tells_where_a_model_would_run(run: Run) -> None:
    def device(*arguments: str, **variables: str) -> str:
        lines = run("doctor", *arguments, TRITON_INTERPRET="", **variables).stdout.splitlines()
        return next(line.split(maxsplit=1)[1] for line in lines if line.startswith("device "))

    assert device("--device", "cpu") == "cpu"
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert device(**hidden) == "cpu (auto)"
    assert device("--device", "cuda", **hidden).startswith("device cuda: ")
    assert device("--device", "cuda", **hidden).endswith("or use --device cpu")


def test_generate_prints_prompt_and_completion(run: Run) -> None:
    done = run("generate", "-p", "Hï ", "-n", "20", model="fake")
    assert (done.stdout, done.returncode) == ("Hï " + recite("Hï ", 20) + "\n", 0)


def test_generate_reads_standard_input(run: Run) -> None:
    done = run("generate", "-p", "-", "-n", "3", "--ignore-eos", model="fake", stdin="a.")
    assert done.stdout == "a." + recite("a.", 3, stop_on_eos=False) + "\n"


def test_generate_samples_with_the_seed(run: Run) -> None:
    one, again, other = (
        run("generate", "-p", "a", "-n", "16", "--do-sample", "--seed", seed, model="fake").stdout
        for seed in ("1", "1", "2")
    )
    assert one == again != other


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["serve", "--port", "many"], 2, "--port must be a whole number"),
        (["serve", "--device", "tpu"], 2, "--device must be one of auto, cpu, cuda"),
        (["serve", "--config", "no.toml"], 2, "no.toml cannot be read"),
        (["serve", "--host", "no such host"], 2, "cannot listen on host 'no such host'"),
        (["serve", "--api-key-file", "no.keys"], 2, "no.keys cannot be read"),
        (["generate", "-p", "a", "--temperature", "9"], 2, "temperature must be between 0.0 and 2.0"),
        (["generate", "-p", "a", "-n", "-1"], 2, "max_new_tokens must be between"),
        (["pull", "./no.gguf"], 2, "there is no file or folder './no.gguf'"),
        (["pull", "smolm2-135m"], 2, "did you mean 'smollm2-135m'?"),
        (["pull", "nothing-of-the-kind"], 2, "there is no model 'nothing-of-the-kind'. A model is a file"),
        (["inspect", "no.gguf"], 2, "there is no file or folder 'no.gguf'"),
    ],
)
def test_errors_are_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    error = lines_of_error(run(*arguments), code)
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nope"], ["serve", "--nope"], ["generate"], ["inspect"]])
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    assert "Usage" in lines_of_error(run(*arguments), 2)


def test_a_file_that_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    error = lines_of_error(run("inspect", "m.gguf"), 1)
    assert "m.gguf" in error
    assert error.count("\n") == 1


def test_variables_and_the_file_are_read(run: Run, tmp_path: Path) -> None:
    assert "ROSEINFER_PORT" in lines_of_error(run("serve", ROSEINFER_PORT="-1"), 2)
    (tmp_path / "roseinfer.toml").write_text("prot = 1")
    assert "unknown key prot" in lines_of_error(run("serve"), 2)
