"""What a lost or failed connection means: try again, or stop and tell the application."""

from __future__ import annotations

import random

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    InvalidURI,
    PayloadTooBig,
    WebSocketException,
)

from cloudsync.client import errors
from cloudsync.client.errors import TokenCallbackFailed
from cloudsync.client.rest import TemporarilyUnavailable
from cloudsync.errors import CloudSyncError, TokenRefused
from cloudsync.protocol.codes import Close

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0


class Lost(Exception):
    """The connection is gone and another may be made; `stale_token` asks for a new token first."""

    def __init__(self, reason: str, *, stale_token: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stale_token = stale_token


def backoff_s(attempt: int, *, base_s: float = BACKOFF_BASE_S, cap_s: float = BACKOFF_CAP_S) -> float:
    """Exponential backoff with full jitter: evenly between nothing and the bound, which doubles."""
    return random.uniform(0, min(cap_s, base_s * 2 ** min(attempt, 16)))  # noqa: S311  spreading, not secrecy


def classify(error: Exception, complaint: CloudSyncError | None = None) -> Lost | Exception:
    """Lost if another attempt makes sense, otherwise the error for the application.

    `complaint` is the last `error` frame of the connection: it says more than a close code.
    """
    if isinstance(error, ConnectionClosed):
        return _closed(error, complaint)
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        return Lost(f"The gateway answered {status}.", stale_token=status == 401)
    if isinstance(error, InvalidURI):
        return errors.ProtocolBroken("The API named an endpoint that is not a WebSocket URL.")
    if isinstance(error, TokenCallbackFailed):
        return error
    if isinstance(error, TokenRefused):
        return Lost(str(error), stale_token=True)
    if isinstance(error, TemporarilyUnavailable | Lost):
        return error if isinstance(error, Lost) else Lost(str(error))
    if isinstance(error, CloudSyncError):
        return error
    if isinstance(error, TimeoutError):
        return Lost("The gateway did not answer in time.")
    if isinstance(error, OSError | InvalidHandshake | WebSocketException):
        return Lost(f"The gateway cannot be reached: {error or type(error).__name__}.")
    return error


def _closed(error: ConnectionClosed, complaint: CloudSyncError | None) -> Lost | CloudSyncError:
    if error.rcvd is None and isinstance(error.__cause__, PayloadTooBig):
        return errors.ProtocolBroken("The server sent a frame that is larger than this client takes.")
    code = error.rcvd.code if error.rcvd else 1006
    reason = error.rcvd.reason if error.rcvd else ""
    if 4500 <= code <= 4999:
        return errors.from_close(code, str(complaint) if complaint else reason)
    return Lost(
        f"The connection was closed ({code}{': ' + reason if reason else ''}).",
        stale_token=code == Close.TOKEN_EXPIRED,
    )
