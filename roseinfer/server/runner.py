"""From settings to a running server: the port first, then the model, then requests, until a signal."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING

from roseinfer.core.config import Config, load_api_keys
from roseinfer.core.errors import ConfigError, EngineError
from roseinfer.core.interpreter import settle_interpreter
from roseinfer.server.host_names import allowed_hosts_in
from roseinfer.server.log_handler import log_to_stderr
from roseinfer.server.startup import import_fastapi, quick_start

if TYPE_CHECKING:
    from roseinfer.inference_engine import GenerateParams, InferenceEngine

logger = logging.getLogger("roseinfer")


def serve(config: Config, defaults: GenerateParams | None = None) -> None:
    """Serves until SIGTERM or SIGINT, lets running requests finish, and returns.

    `defaults` are for `/generate` bodies that leave fields out. Raises RoseinferError where it cannot start, and when
    the engine is gone for good.
    """
    set_up_logging(config.log_level)
    api_keys = load_api_keys(config)
    allowed_hosts = allowed_hosts_in(config.allowed_hosts, is_loopback=_is_loopback(config.host))
    with bind(config.host, config.port) as listener:
        if not api_keys and not _is_loopback(config.host):
            logger.warning("anybody who can reach %s may use this server; see --api-key", config.host)
        with contextlib.ExitStack() as stack:
            with quick_start():
                engine = stack.enter_context(_load_engine(config, len(set(api_keys))))
                from roseinfer.server.app import create_app
                from roseinfer.server.http_server import make_server
                from roseinfer.server.middleware.access_log import set_up_access_log
                from roseinfer.server.warm_up import warming_up

                app = create_app(
                    engine,
                    defaults=defaults,
                    api_keys=api_keys,
                    metrics_prefix=config.metrics_prefix,
                    allowed_hosts=allowed_hosts,
                    max_body_bytes=config.max_body_size,
                    request_timeout=config.request_timeout or None,
                )
                set_up_access_log(config.access_log, is_debug=config.log_level == "debug")
                warm_up = warming_up(app.routes)
                stack.callback(warm_up.cancel)

                def on_ready() -> None:
                    _announce(engine, listener)
                    warm_up.start()

                server = make_server(
                    app,
                    config.log_level,
                    on_ready,
                    max_connections=config.max_connections,
                    drain_timeout=config.drain_timeout,
                )
                settle_interpreter()
            reasons: list[str] = []

            def on_death(reason: str) -> None:
                reasons.append(reason)
                server.should_exit = True

            engine.client.on_death = on_death
            engine.client.check_alive()
            server.run([listener])
            if reasons:
                raise EngineError(reasons[0])


def set_up_logging(level: str) -> None:
    """Our own lines from `level` on, other libraries' from warnings on."""
    log_to_stderr()
    logger.setLevel(level.upper())


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds the port but does not listen yet: who connects too early is refused, not left waiting.

    Raises ConfigError naming host and port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on host {host!r}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}; see --host and --port") from None
    return listener


def _load_engine(config: Config, num_tenants: int) -> InferenceEngine:
    from roseinfer.inference_engine import InferenceEngine

    return InferenceEngine.from_config(
        config,
        logger.info,
        num_tenants=num_tenants,
        engine_process=config.engine_process,
        meanwhile=_import_app,
    )


def _import_app() -> None:
    import_fastapi()
    importlib.import_module("roseinfer.server.app")
    importlib.import_module("roseinfer.server.http_server")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _announce(engine: InferenceEngine, listener: socket.socket) -> None:
    from roseinfer.report import format_memory

    url, where = _places(*listener.getsockname()[:2])
    body = '{"prompt": "The capital of France is", "max_new_tokens": 16}'
    logger.info("%s is served at %s (%s)", engine.name, where, format_memory(engine.info.memory))
    logger.info("try: curl %s/generate -H 'Content-Type: application/json' -d '%s'", url, body)
    logger.info("OpenAI clients: base_url=%s/v1; all routes: %s/docs", url, url)


def _places(host: str, port: int) -> tuple[str, str]:
    """A URL that can be asked from this machine, and what to say of where the server listens."""
    address = ipaddress.ip_address(host.partition("%")[0])  # a link-local one names its interface behind it
    if not address.is_unspecified:
        url = _url(host, port)
        return url, url
    url = _url("127.0.0.1" if address.version == 4 else "::1", port)
    return url, f"{url} and all other addresses of this machine"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
