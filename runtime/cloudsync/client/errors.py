"""What a client may be told, as exceptions: from a code in an `error` frame or answer, or from a close code.

All of them are part of the platform's tree of errors and carry a stable `code`.
"""

from __future__ import annotations

from typing import Final

from cloudsync.errors import (
    BadFilter,
    ClientRefused,
    CloudSyncError,
    LimitReached,
    RequestError,
    TokenRefused,
    UnknownColumn,
    UnknownTable,
)
from cloudsync.protocol.codes import CLOSE_MEANINGS, Close


class Unreachable(CloudSyncError):
    """The platform could not be reached in time."""

    code = "unreachable"


class ServerRefused(RequestError):
    """The server did not carry out the request."""

    def __init__(self, message: str | None = None, *, code: str = "bad_request") -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # every registered code without a class of its own


class ChangeRejected(ServerRefused):
    """The server did not apply the change; it is taken back."""


class TokenCallbackFailed(CloudSyncError):
    """The application's token callback failed."""

    code = "token_callback"


class ProtocolBroken(CloudSyncError):
    """Client and server do not understand each other."""

    code = "protocol_error"


class FrameUnreadable(ProtocolBroken):
    """The server sent something that this client cannot take in."""


class TenantDisabled(CloudSyncError):
    """The tenant is disabled."""

    code = "tenant_disabled"


class TooManyConnections(LimitReached):
    """The user or the gateway has too many connections."""

    code = "too_many_connections"


class FellBehind(LimitReached):
    """The application reads a view's changes more slowly than they come; read the view's rows instead."""

    code = "fell_behind"


class StoreFailed(CloudSyncError):
    """The client's store could not be read or written."""

    code = "store_failed"


class StoreInUse(StoreFailed):
    """The client's store is open in another client or process."""

    code = "store_in_use"


class StoreRefused(StoreFailed):
    """The file is not this client's store."""

    code = "store_refused"


class Closed(CloudSyncError):
    """The client or the view has been closed."""

    code = "closed"


_BY_CODE: Final[dict[str, type[CloudSyncError]]] = {
    kind.code: kind
    for kind in (TokenRefused, ClientRefused, UnknownTable, UnknownColumn, BadFilter, LimitReached)
}
_BY_CLOSE: Final[dict[int, type[CloudSyncError]]] = {
    Close.BAD_TOKEN: TokenRefused,
    Close.CLIENT_REVOKED: ClientRefused,
    Close.PROTOCOL_ERROR: ProtocolBroken,
    Close.TENANT_DISABLED: TenantDisabled,
    Close.TOO_MANY_CONNECTIONS: TooManyConnections,
}


def from_code(code: str, message: str) -> CloudSyncError:
    """The exception for an error that the server reported."""
    kind = _BY_CODE.get(code)
    return kind(message) if kind else ServerRefused(message, code=code)


def from_close(code: int, message: str = "") -> CloudSyncError:
    """The exception for a close code that tells the application to stop (4500-4999)."""
    if not message and code in _BY_CLOSE:
        message = CLOSE_MEANINGS[Close(code)]
    kind = _BY_CLOSE.get(code)
    if kind is None:
        return ServerRefused(message or f"The server closed the connection for good ({code}).", code="closed")
    return kind(message)
