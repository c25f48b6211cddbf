"""A server as a process: what it logs, when it listens, how it ends."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.processes import ServerProcess, Start
from tests.fake_model import recite


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, **variables: str) -> ServerProcess:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.fake_main", *arguments],
                env={**environment, **variables},
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return ServerProcess(process)

        yield start


def test_it_says_where_it_serves_and_how_to_ask(start: Start) -> None:
    server = start("serve", "--port", "0")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
    assert server.log[-1] == f"INFO fake is served at {server.url} (weights 0 B, KV cache up to 0 B, activations 0 B)"
    reply = httpx.post(f"{server.url}/generate", json={"prompt": "Hi", "max_new_tokens": 4})
    assert reply.json()["text"] == "Hi" + recite("Hi", 4)
    assert server.stop() == 0
    (hint,) = [line for line in server.log if "try: " in line]
    assert f"curl {server.url}/generate" in hint
    assert not any("WARNING" in line or "Traceback" in line for line in server.log)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(start: Start, sig: int) -> None:
    server = start("serve", "--port", "0", STEP_SECONDS="0.01")
    body = {"prompt": "a", "max_new_tokens": 100, "stop_on_eos": False, "stream": True}
    with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=30) as reply:
        pieces = reply.iter_text()
        first = next(pieces)
        server.process.send_signal(sig)
        assert first + "".join(pieces) == recite("a", 100, stop_on_eos=False)
    assert server.process.wait(10) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_a_second_signal_does_not_wait(start: Start) -> None:
    server = start("serve", "--port", "0", STEP_SECONDS="0.05")
    body = {"prompt": "a", "max_new_tokens": 500, "stop_on_eos": False, "stream": True}
    with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=30) as reply:
        pieces = reply.iter_text()  # held, because dropping it would hang up
        assert next(pieces)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert server.process.poll() is None, server.log
        started = time.monotonic()
        assert server.stop() == -signal.SIGTERM
        assert time.monotonic() - started < 1


def test_a_port_in_use_is_told_before_the_model_is_loaded(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start("serve", "nowhere.gguf", "--port", str(port))
        assert server.process.wait(20) == 2
    assert server.log == [
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use; see --host and --port"
    ]


def test_an_open_address_without_a_key_is_warned_of(start: Start) -> None:
    server = start("serve", "--port", "0", "--host", "0.0.0.0")
    assert any(line.startswith("WARNING anybody who can reach 0.0.0.0") for line in server.log)
    assert server.stop() == 0
    server = start("serve", "--port", "0", "--host", "0.0.0.0", ROSEINFER_API_KEY="sesame")
    assert not any("WARNING" in line for line in server.log)
    assert httpx.post(f"{server.url}/generate", json={"prompt": "a"}).status_code == 401


@pytest.mark.parametrize(("host", "local"), [("0.0.0.0", r"127\.0\.0\.1"), ("::", r"\[::1\]")])
def test_a_server_on_all_addresses_says_so_and_names_one_to_ask(start: Start, host: str, local: str) -> None:
    server = start("serve", "--port", "0", "--host", host)
    assert re.fullmatch(rf"http://{local}:\d+", server.url)
    assert f"is served at {server.url} and all other addresses of this machine (" in server.log[-1]
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.stop() == 0
    assert any(f"try: curl {server.url}/generate" in line for line in server.log)
    assert not any("//0.0.0.0" in line or "//[::]" in line for line in server.log)


def test_the_seeds_command_line(start: Start) -> None:
    flags = ["--checkpoint-path", "m.pt", "--tokenizer-name", "gpt2", "--device", "cpu", "--no-amp", "--stop-on-eos"]
    sampling = ["--do-sample", "--temperature", "0.7", "--top-k", "3", "--top-p", "0.9"]
    server = start(*flags, *sampling, "--port", "0", SEED="1")
    assert "and all other addresses" in server.log[-1]
    url = server.url
    body = {"prompt": "a", "max_new_tokens": 12, "seed": 4}
    sampled = httpx.post(f"{url}/generate", json=body).json()["text"]
    assert sampled == httpx.post(f"{url}/generate", json={**body, "do_sample": True}).json()["text"]
    greedy = httpx.post(f"{url}/generate", json={**body, "do_sample": False}).json()["text"]
    assert greedy == "a" + recite("a", 12) != sampled
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "0"], "--checkpoint-path"),
        (["--checkpoint-path", "m", "--top-p", "7"], "top_p must be greater than 0"),
        (["--checkpoint-path", "m", "--port", "x"], "--port must be a whole number"),
    ],
)
def test_the_seeds_command_line_done_wrong(start: Start, arguments: list[str], said: str) -> None:
    server = start(*arguments, SEED="1")
    assert server.process.wait(20) == 2
    assert said in server.log[-1]
