"""A WebSocket that costs a receiver next to nothing.

A hundred clients that are sent 2,000 changes/s share their cores with everything that is measured. So
the library speaks (handshake, acknowledgements, pongs: all rare), and only splitting what arrives into
frames is done here, on the bytes of each read and without a task per client. Servers do not mask and this
platform does not compress: the header's length is all there is to read (RFC 6455, section 5.2).
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from cloudsync.errors import PlatformError
from cloudsync.protocol.messages import SUBPROTOCOL

_TEXT: Final = 0x80 | Opcode.TEXT
_PING: Final = 0x80 | Opcode.PING
_CLOSE: Final = 0x80 | Opcode.CLOSE


class HandshakeFailed(PlatformError):
    """The gateway did not accept the WebSocket."""

    code = "handshake_failed"


class FrameSocket(asyncio.Protocol):
    """One connection; subclasses take `frame(payload)` for each text frame, `ended(code)` once at the end."""

    def __init__(self, url: str, token: str) -> None:
        protocols = [Subprotocol(SUBPROTOCOL)]
        self._library = ClientProtocol(parse_uri(url), subprotocols=protocols)
        self._token = token
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._open = False
        self._code: int | None = None
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the handshake is over; raises HandshakeFailed."""

    def frame(self, payload: bytes) -> None:
        raise NotImplementedError

    def read_over(self) -> None:
        """All frames of one read have been handed over."""

    def ended(self, code: int | None) -> None:
        """The connection is gone; `code` is what the server closed it with."""

    def say(self, payload: bytes) -> None:
        """Send a text frame."""
        if self._open and self._transport is not None:
            self._library.send_text(payload)
            self._transport.writelines(self._library.data_to_send())

    def leave(self) -> None:
        """Close in the proper way; `ended` follows."""
        if self._open and self._transport is not None:
            self._library.send_close(1000)
            self._transport.writelines(self._library.data_to_send())
            self._open = False
        elif self._transport is not None:
            self._transport.abort()

    def abort(self) -> None:
        """Break off without a word, as a network does."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        self._transport = stream
        request = self._library.connect()
        request.headers["Authorization"] = f"Bearer {self._token}"
        self._library.send_request(request)
        stream.writelines(self._library.data_to_send())

    def data_received(self, data: bytes) -> None:
        if not self._open:
            data = self._handshake(data)
            if not self._open:
                return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at, size = 0, len(data)
        while size - at >= 2:
            length = data[at + 1]
            start = at + 2
            if length == 126:
                start = at + 4
                length = int.from_bytes(data[at + 2 : start], "big")
            elif length == 127:
                start = at + 10
                length = int.from_bytes(data[at + 2 : start], "big")
            end = start + length
            if end > size or start > size:
                break
            kind = data[at]
            if kind == _TEXT:
                self.frame(data[start:end])
            else:
                self._control(kind, data[start:end])
            at = end
        if at < size:
            self._buffer = data[at:] if at else data
        self.read_over()

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._transport = None
        if not self.greeted.done():
            self.greeted.set_exception(HandshakeFailed("The gateway hung up during the handshake."))
        self.ended(self._code)

    def _handshake(self, data: bytes) -> bytes:
        """Feed the library until its handshake is over; returns what belongs to frames."""
        data = self._buffer + data
        self._buffer = b""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return b""
        self._library.receive_data(data[: end + 4])
        answers = [event for event in self._library.events_received() if isinstance(event, Response)]
        if self._library.state is State.OPEN:
            self._open = True
            self.greeted.set_result(None)
            return data[end + 4 :]
        status = answers[0].status_code if answers else "nothing"
        if not self.greeted.done():
            self.greeted.set_exception(HandshakeFailed(f"The gateway answered {status}."))
        if self._transport is not None:
            self._transport.abort()
        return b""

    def _control(self, kind: int, payload: bytes) -> None:
        if self._transport is None:
            return
        if kind == _PING:
            self._library.send_pong(payload)
            self._transport.writelines(self._library.data_to_send())
        elif kind == _CLOSE:
            self._code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else None
            if self._open:
                self._library.send_close(1000)
                self._transport.writelines(self._library.data_to_send())
            self._open = False
            self._transport.close()


__all__ = ["FrameSocket", "HandshakeFailed"]
