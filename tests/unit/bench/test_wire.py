"""The receiver's socket, fed bytes in every cut."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from cloudsync.bench.wire import FrameSocket, HandshakeFailed

TEXTS = [b"{}", b"a" * 125, b"b" * 126, b"c" * 70_000, "ü".encode()]


class Recorder(FrameSocket):
    def __init__(self) -> None:
        super().__init__("ws://127.0.0.1:1/ws/1", "token")
        self.frames: list[bytes] = []
        self.closed: list[int | None] = []
        self.reads = 0

    def frame(self, payload: bytes) -> None:
        self.frames.append(payload)

    def read_over(self) -> None:
        self.reads += 1

    def ended(self, code: int | None) -> None:
        self.closed.append(code)


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, chunks: Any) -> None:
        self.written += b"".join(chunks)

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


def server_frame(payload: bytes, opcode: Opcode = Opcode.TEXT) -> bytes:
    return Frame(opcode, payload).serialize(mask=False)


async def opened() -> tuple[Recorder, Transport, bytes]:
    """A socket whose request has gone out, and the server's answer to it."""
    socket, transport = Recorder(), Transport()
    socket.connection_made(transport)
    server = ServerProtocol(subprotocols=[Subprotocol("cloudsync.v1")])
    server.receive_data(transport.written)
    (request,) = server.events_received()
    assert isinstance(request, Request)
    assert request.headers["Authorization"] == "Bearer token"
    server.send_response(server.accept(request))
    transport.written = b""
    return socket, transport, b"".join(server.data_to_send())


@pytest.mark.parametrize("cut", [1, 7, 200, 1_000_000])
async def test_frames_in_any_cut(cut: int) -> None:
    socket, transport, answer = await opened()
    data = answer + b"".join(map(server_frame, TEXTS))
    cut = max(cut, len(data) // 2000)
    for at in range(0, len(data), cut):
        socket.data_received(data[at : at + cut])
    await socket.greeted
    assert socket.frames == TEXTS
    assert transport.written == b""


async def test_a_ping_is_answered_and_a_close_is_told() -> None:
    socket, transport, answer = await opened()
    socket.data_received(answer + server_frame(b"x", Opcode.PING))
    assert transport.written[0] == 0x80 | Opcode.PONG
    transport.written = b""
    socket.data_received(server_frame((4002).to_bytes(2, "big") + b"slow", Opcode.CLOSE))
    assert transport.written[0] == 0x80 | Opcode.CLOSE
    assert transport.is_closed
    socket.connection_lost(None)
    assert socket.closed == [4002]


async def test_what_is_said_is_masked_text() -> None:
    socket, transport, answer = await opened()
    socket.data_received(answer)
    socket.say(b'{"type":"ack","n":1}')
    assert transport.written[0] == 0x80 | Opcode.TEXT
    assert transport.written[1] == 0x80 | 20


async def test_a_refused_handshake() -> None:
    socket, transport, _ = await opened()
    socket.data_received(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(HandshakeFailed):
        await socket.greeted
    assert transport.is_closed
