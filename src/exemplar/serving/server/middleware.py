"""Around every request: a limit on its body, and a line in the log."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exemplar.serving.server.logs import event
from exemplar.serving.server.problems import problem

log = logging.getLogger(__name__)

_PROBES = ("/health", "/ready")
_READ_ON = 16  # times the limit


class BodyLimit:
    """Refuses a body above `most` bytes with 413, as soon as its length is known or exceeded."""

    def __init__(self, app: ASGIApp, most: int):
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        received, more = 0, True
        refused = announced.isdigit() and int(announced) > self.most

        async def counted() -> Message:
            nonlocal received, refused, more
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
            refused = refused or received > self.most
            return {"type": "http.disconnect"} if refused else message

        async def unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        if not refused:
            await self.app(scope, counted, unless_refused)
        if refused:
            # A connection closed on a client that still sends loses the answer: read on a while.
            while more and received <= _READ_ON * self.most:
                await counted()
            told = f"The body is larger than {self.most} bytes; send fewer or shorter queries."
            await problem(413, told, headers={"Connection": "close"})(scope, receive, send)


class AccessLog:
    """Logs method, path, status and milliseconds of every request but the probes'."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's request."""
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            event(
                log,
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(1000 * (time.perf_counter() - start), 1),
                **scope.get("state", {}).get("told", {}),
            )
