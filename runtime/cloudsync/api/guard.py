"""The outermost layer of every request: size and time limits, one log line, and no internals in a failure."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloudsync import logs
from cloudsync.api import failures
from cloudsync.metrics.definitions import API_REQUESTS
from cloudsync.metrics.recorder import recorder

BODY_LIMIT_BYTES: Final = 64 * 1024
DRAINED_BYTES: Final = 1024 * 1024
BODY_TIMEOUT_S: Final = 10.0
_QUIET: Final = frozenset(("/healthz", "/readyz"))
_log = logs.get("api")


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message


class Guard:
    """Reads the whole body (it is small by rule) before the application sees the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await _read(receive)
            await self._app(scope, _replay(body, receive), watched)
        except _Refused as refused:
            await _refuse(refused, scope, receive, watched)
        except Exception as error:
            _log.error("request failed", path=scope["path"], exc_info=error)
            if status:
                raise  # half an answer is out: the server must cut the connection
            await failures.answer("internal")(scope, receive, watched)
        finally:
            if status:
                recorder.counter(API_REQUESTS, status=f"{status // 100}xx").add()
            # The path only: a query string is the caller's, and may hold anything.
            write = _log.debug if scope["path"] in _QUIET else _log.info
            write(
                "request",
                method=scope["method"],
                path=scope["path"][:200],
                status=status,
                ms=round((time.perf_counter() - began) * 1000, 1),
            )


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    size_bytes = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                part = message.get("body", b"")
                size_bytes += len(part)
                # A little more is read and dropped: a caller that is still sending would miss the answer.
                if size_bytes <= BODY_LIMIT_BYTES:
                    body += part
                elif size_bytes > DRAINED_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise _Refused("bad_request", "The request's body did not arrive in time.") from None
    if size_bytes > BODY_LIMIT_BYTES:
        raise _too_large()
    return bytes(body)


def _too_large() -> _Refused:
    return _Refused("too_large", f"A request's body may have at most {BODY_LIMIT_BYTES} bytes.")


def _replay(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


async def _refuse(refused: _Refused, scope: Scope, receive: Receive, send: Any) -> None:
    response = failures.answer(refused.code, refused.message)
    response.headers["connection"] = "close"  # the rest of the body is not worth reading
    await response(scope, receive, send)
