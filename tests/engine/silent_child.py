"""An engine's process that never says a word."""

from __future__ import annotations

import socket


def main(socket_fd: int, progress_fd: int, cache_fd: int | None) -> None:
    with socket.socket(fileno=socket_fd) as connection:
        while connection.recv(4096):
            pass
