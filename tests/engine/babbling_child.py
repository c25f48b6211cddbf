"""An engine's process that says what nobody understands."""

from __future__ import annotations

import socket


def main(socket_fd: int, progress_fd: int, cache_fd: int | None) -> None:
    with socket.socket(fileno=socket_fd) as connection:
        connection.sendall((5).to_bytes(4, "little") + b"\x81\xa4typ")
        while connection.recv(4096):
            pass
