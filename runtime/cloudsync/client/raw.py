"""A thin connection that hands over frames as they come: the client's ground, and the benchmark's tool."""

from __future__ import annotations

import logging
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.typing import Subprotocol

import cloudsync
from cloudsync.client import errors
from cloudsync.client.frames import decode
from cloudsync.client.rest import is_loopback
from cloudsync.protocol.messages import (
    SUBPROTOCOL,
    Ack,
    ClientFrame,
    Error,
    HeldSubscription,
    Hello,
    Mode,
    Subscribe,
    Welcome,
    Where,
    encode,
)

SDK: Final = f"python/{cloudsync.__version__}"
MAX_FRAME_BYTES: Final = 32 * 1024 * 1024
_log = logging.getLogger("cloudsync.client.websocket")
_log.setLevel(logging.INFO)  # below, the library writes request headers: the token


async def open_socket(
    url: str,
    *,
    token: str,
    ssl_context: ssl.SSLContext | None = None,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    open_timeout_s: float = 10.0,
) -> ClientConnection:
    """A WebSocket that has shaken hands and said nothing yet. Raises what the websockets library raises."""
    extra: dict[str, Any] = {"ssl": ssl_context} if ssl_context and url.startswith("wss:") else {}
    socket = await open_websocket(
        url,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {token}"},
        user_agent_header=f"cloudsync-{SDK}",
        compression=None,
        max_size=max_frame_bytes,
        open_timeout=open_timeout_s,
        close_timeout=2,
        proxy=None if is_loopback(urlsplit(url).hostname or "") else True,
        logger=_log,
        **extra,
    )
    if socket.subprotocol != SUBPROTOCOL:
        await socket.close()
        raise errors.ProtocolBroken(f"The server does not speak {SUBPROTOCOL}.")
    return socket


class RawConnection:
    """One connection: greeted, then raw frames. Acknowledging is the caller's business."""

    def __init__(self, socket: ClientConnection, welcome: Welcome) -> None:
        self.socket = socket
        self.welcome = welcome

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        token: str,
        client_id: str,
        cursor: str | None = None,
        held: list[HeldSubscription] | None = None,
        **options: Any,
    ) -> RawConnection:
        """Connect to the WebSocket URL and greet. Raises ConnectionClosed, or the error that is named."""
        socket = await open_socket(url, token=token, **options)
        try:
            await socket.send(encode(Hello(client_id, cursor, held or [], SDK)), text=True)
            frame = decode(await socket.recv(decode=False))
            if isinstance(frame, Error):
                raise errors.from_code(frame.code, frame.message)
            if not isinstance(frame, Welcome):
                raise errors.ProtocolBroken("The server did not welcome the client.")
        except BaseException:
            await socket.close()
            raise
        return cls(socket, frame)

    async def subscribe(
        self,
        id_: str,
        table: str,
        *,
        where: Where | None = None,
        columns: list[str] | None = None,
        snapshot: bool = True,
        mode: Mode = "every",
    ) -> None:
        await self.send(Subscribe(id_, table, where, columns, snapshot, mode))

    async def ack(self, n: int) -> None:
        await self.send(Ack(n))

    async def send(self, frame: ClientFrame) -> None:
        await self.socket.send(encode(frame), text=True)

    async def receive(self) -> bytes:
        """The next frame, undecoded (`frames.decode` reads it)."""
        return await self.socket.recv(decode=False)

    async def close(self) -> None:
        await self.socket.close()
