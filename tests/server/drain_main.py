"""A server as a process of its own: `python -m tests.server.drain_main DRAIN STEP`, both in seconds."""

from __future__ import annotations

import logging
import sys

from roseinfer.server.app import create_app
from roseinfer.server.http_server import make_server
from roseinfer.server.runner import bind
from tests.fake_model import RecitingProgram, fake_engine


def main(drain_timeout: float, step_seconds: float) -> None:
    logging.basicConfig(level=logging.INFO)
    program = RecitingProgram()
    program.step_seconds = step_seconds
    with bind("127.0.0.1", 0) as listener, fake_engine(program) as engine:
        port = listener.getsockname()[1]
        server = make_server(
            create_app(engine),
            "info",
            lambda: print(f"served at http://127.0.0.1:{port}", file=sys.stderr, flush=True),
            drain_timeout=drain_timeout,
        )
        server.run([listener])


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
