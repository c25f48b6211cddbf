"""`roseinfer bench` as a whole, against servers that play a role and against a server of its own."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import roseinfer.bench.main as bench_main
import roseinfer.bench.processes as processes
from roseinfer.bench import BenchOptions, choose_workloads, run_bench
from roseinfer.core.config import load_config
from roseinfer.core.errors import ConfigError, EngineError
from roseinfer.inference_engine import InferenceEngine
from tests.bench.fake_servers import serving
from tests.cli.conftest import environment, run
from tests.cli.processes import Run
from tests.fake_model import byte_tokenizer, fake_engine

__all__ = ["environment", "run"]

ROOT = Path(__file__).parents[2]
WORKLOADS = choose_workloads([], num_requests=4, input_len=12, output_len=5, concurrency=2)


def bench(*, urls: list[str], **options: Any) -> None:
    given = {"workloads": WORKLOADS, "has_model": False, "repeats": 2, **options}
    run_bench(load_config({}, environ={}), BenchOptions(urls=urls, **given))


def test_two_urls_are_measured_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    with serving() as (a, role_a), serving(gap_seconds=0.01) as (b, role_b):
        bench(urls=[a, b], json_file=file)
    out = capsys.readouterr().out
    assert "A/B" in out
    assert "TPOT = " in out or "TPOT" in out
    assert len(role_a.streamed()) == len(role_b.streamed()) == 1 + 2 * 4  # a warm-up, two repeats of four
    turns = sorted([(t, "A") for t in role_a.received_at[-8:]] + [(t, "B") for t in role_b.received_at[-8:]])
    assert "".join(label for _, label in turns) == "AAAABBBBAAAABBBB"
    document = json.loads(file.read_text())
    ratios = document["workloads"][0]["ratios"]["A/B"]
    assert ratios["tpot_p50_ms"]["high"] < 1
    assert document["targets"]["B"]["url"] == b


def test_prompts_differ_between_requests_repeats_and_targets() -> None:
    with serving() as (url, role):
        bench(urls=[url, url])
    prompts = [str(body["prompt"]) for body in role.streamed()]
    assert len(prompts) == len(set(prompts)) == 2 * (1 + 2 * 4)


def test_the_seed_decides_on_the_prompts() -> None:
    asked = []
    for seed in (1, 1, 2):
        with serving() as (url, role):
            bench(urls=[url], seed=seed, workloads=choose_workloads([], num_requests=4, output_len=5))
        asked.append([body["prompt"] for body in role.streamed()])
    assert asked[0] == asked[1]
    assert not set(map(str, asked[0])) & set(map(str, asked[2]))


def test_a_server_of_our_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The command's own server, with the model of bytes behind it, next to one that is running already."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fake_main = [sys.executable, "-m", "tests.cli.fake_main", "serve", "--port", "0"]
    monkeypatch.setattr(processes, "serve_command", lambda config: fake_main)
    monkeypatch.setattr(bench_main, "_load_tokenizer", lambda config, has_model: byte_tokenizer())
    with serving() as (url, _):
        bench(urls=[url], has_model=True, json_file=tmp_path / "out.json")
    out = capsys.readouterr().out
    assert "ready after s" in out
    assert "server CPU s" in out
    first = json.loads((tmp_path / "out.json").read_text())["workloads"][0]["targets"]["A"]
    for repeat in first["repeats"]:
        assert repeat["figures"]["num_errors"] == 0
        assert repeat["figures"]["server_rss_bytes"] > 1 << 20
        assert {request["output_tokens"] for request in repeat["requests"]} == {5}
        assert {request["input_tokens"] for request in repeat["requests"]} == {12}


def test_the_engine_without_http(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine = fake_engine()
    monkeypatch.setattr(InferenceEngine, "from_config", lambda config, say: engine)
    bench(urls=[], has_model=True, with_http=False)
    out = capsys.readouterr().out
    assert "in this process" in out
    assert "prompt tokens from the prefix cache: 0 of 96" in out
    assert not engine.client.is_alive


def test_nothing_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(fail_with=500) as (url, _), pytest.raises(EngineError) as caught:
        bench(urls=[url])
    assert str(caught.value) == "custom: every request to A failed: HTTP 500: too busy"
    assert "8 of 8 requests failed" in capsys.readouterr().out


def test_a_server_that_goes_away_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        url, _ = stack.enter_context(serving(closes_after_reply=True))
        measure = bench_main._measure

        async def measure_without_server(*arguments: Any) -> Any:
            stack.close()
            return await measure(*arguments)

        monkeypatch.setattr(bench_main, "_measure", measure_without_server)
        # Whether the client has noticed by the warm-up that its kept connection is gone, is up to the clock.
        with pytest.raises(EngineError, match=r"custom, (warm-up|repeat 1 of 2) on A: .*Connect call failed"):
            bench(urls=[url])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"profile": True}, "--profile looks into a model of this process, so it needs a MODEL"),
        ({"with_http": False}, "--no-http looks into a model"),
        ({"profile": True, "has_model": True}, "--profile takes no --url"),
        ({"profile": True, "has_model": True, "urls": [], "json_file": Path("x")}, "--profile takes no --json"),
        ({"json_file": Path("no/where.json")}, "--json no/where.json cannot be written"),
        ({"json_file": Path()}, r"--json \. cannot be written"),
        ({"urls": ["http://h"] * 9}, "there can be 8 targets, got 9"),
        ({"urls": ["h"]}, "--url must be an address"),
    ],
)
def test_what_makes_no_sense_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        bench(**{"urls": ["http://127.0.0.1:1"], **options})


def test_help_fits_80_columns(run: Run) -> None:
    done = run("bench", "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    for flag in ("--url", "--workload", "--rate", "--json", "--no-http", "--profile", "--threads", "--tokenizer"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workload", "w7"], "--workload 'w7' is unknown"),
        (["--requests", "0"], "--requests must be at least 1"),
        (["--rate", "-1"], "--rate must be a number above 0"),
        (["--url", "localhost"], "--url must be an address"),
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1: "),
        (["no.gguf"], "there is no file or folder 'no.gguf'"),
        (["--url", "http://127.0.0.1:1", "--profile"], "--profile looks into a model"),
    ],
)
def test_errors_are_one_line(run: Run, arguments: list[str], said: str) -> None:
    done = run("bench", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


def test_the_command_and_its_exit_codes(run: Run, tmp_path: Path) -> None:
    shape = ["--requests", "2", "--input-len", "9", "--output-len", "3", "--repeats", "1"]
    with serving() as (url, role):
        done = run("bench", "--url", url, *shape, "--json", "out.json")
        assert (done.returncode, done.stderr) == (0, "")
        assert "custom  2 requests, 1 at once; 9 tokens in, 3 out" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert json.loads((tmp_path / "out.json").read_text())["repeats"] == 1
        role.fail_with = 500
        failed = run("bench", "--url", url, *shape)
    assert failed.returncode == 1
    assert failed.stderr == "error: custom: every request to A failed: HTTP 500: too busy\n"
