"""Listen, answer until told to stop, and finish what is under way."""

from __future__ import annotations

import contextlib
import logging
import socket
from typing import Any

import uvicorn

from exemplar.errors import ConfigError
from exemplar.serving.server import logs
from exemplar.serving.server.app import Limits, create_app
from exemplar.serving.server.live import LiveModel, Source

log = logging.getLogger(__name__)

_GRACE_SECONDS = 30  # for requests under way after SIGTERM
_KEEP_ALIVE_SECONDS = 75  # longer than balancers keep idle connections, or they meet closed ones


def run(
    source: Source,
    *,
    host: str,
    port: int,
    limits: Limits,
    batch_size: int,
    threads: int | None,
    poll_seconds: float,
    access_log: bool = True,
) -> None:
    """Serve until SIGINT or SIGTERM. The first model is loaded while /health answers already.

    Raises `ConfigError` where the address cannot be used, and whatever the first load failed with.
    """
    source.find()  # a wrong name is reported before anything listens
    listener = _listen(host, port)
    logs.set_up()
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(
        LiveModel(source),
        limits=limits,
        batch_size=batch_size,
        threads=threads,
        poll_seconds=poll_seconds,
        on_failure=fail,
        access_log=access_log,
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    address: Any = listener.getsockname()
    logs.event(log, "listening", host=address[0], port=address[1], model=source.name)
    with listener, contextlib.suppress(KeyboardInterrupt):  # raised anew once all is answered
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends small packets at once; else answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another --host or "
            "--port, or stop the process that uses it."
        ) from None
    return listener
