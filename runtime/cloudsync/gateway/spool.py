"""Where a snapshot waits that its client does not take as fast as PostgreSQL gives it.

A snapshot has to be read in one transaction, and of those there may be few; a client may take minutes, or
nothing at all. So what it does not take at once is read to a file, and transaction and place are given back.
The file has no name, is sealed with a key that only this process ever holds, and counts against a budget of
the whole gateway.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from typing import IO, Final

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloudsync.gateway.connection import Connection
from cloudsync.protocol.frames import Body

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Body).decode
_NONCE_BYTES: Final = 12
_STALL_S: Final = 5.0
"""So long may a client take nothing while a transaction waits for it."""


class SpoolSpace:
    """What all spools of a gateway may take on disk, and the key of this process."""

    def __init__(self, limit_bytes: int) -> None:
        self.free_bytes = limit_bytes
        self._cipher = AESGCM(AESGCM.generate_key(bit_length=256))
        self._sealed = 0

    def seal(self, content: bytes) -> bytes:
        self._sealed += 1  # a nonce that is never used twice
        nonce = self._sealed.to_bytes(_NONCE_BYTES, "big")
        return nonce + self._cipher.encrypt(nonce, content, None)

    def open(self, sealed: bytes) -> bytes:
        return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)


class Spool:
    """Frames in, frames out, in order. Close it: it holds disk until then."""

    def __init__(self, space: SpoolSpace) -> None:
        self._space = space
        self._file: IO[bytes] | None = None
        self._sizes: deque[int] = deque()
        self._read_at = 0
        self._written = 0

    def __len__(self) -> int:
        return len(self._sizes)

    async def put(self, body: Body) -> bool:
        """Whether there was space for it. Raises OSError."""
        sealed = self._space.seal(_encode(body))
        if len(sealed) > self._space.free_bytes:
            return False
        self._space.free_bytes -= len(sealed)
        self._written += len(sealed)
        self._sizes.append(len(sealed))
        await asyncio.to_thread(self._append, sealed)
        return True

    async def take(self) -> Body:
        """The oldest frame. Space that was written is given back with the whole spool, not before."""
        size = self._sizes.popleft()
        sealed = await asyncio.to_thread(self._read, self._read_at, size)
        self._read_at += size
        return _decode(self._space.open(sealed))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._space.free_bytes += self._written
        self._written = 0
        self._sizes.clear()

    def _append(self, sealed: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="cloudsync-snapshot-")  # noqa: SIM115
        self._file.seek(0, 2)
        self._file.write(sealed)

    def _read(self, start: int, size: int) -> bytes:
        assert self._file is not None  # noqa: S101 - something was put
        self._file.seek(start)
        return self._file.read(size)


class PacedSender:
    """Sends a snapshot's frames: at its client's pace, while PostgreSQL is read at its own."""

    def __init__(self, connection: Connection, sub: str, space: SpoolSpace) -> None:
        self._connection = connection
        self._sub = sub
        self._spool = Spool(space)

    async def send(self, body: Body) -> bool:
        """Send or keep a frame; False if the connection is closed.

        Waits for the client only when there is no more space. Raises OSError.
        """
        connection = self._connection
        if not self._spool and connection.has_room:
            connection.push(self._sub, body)
        elif not await self._spool.put(body):
            if not await self._send_kept(within_s=_STALL_S) or not await connection.room(within_s=_STALL_S):
                return False
            connection.push(self._sub, body)
        return connection.live

    async def finish(self) -> bool:
        """Send what was kept, however long the client takes; False if the connection is closed."""
        return await self._send_kept(within_s=None)

    def close(self) -> None:
        self._spool.close()

    async def _send_kept(self, *, within_s: float | None) -> bool:
        while self._spool:
            if not await self._connection.room(within_s=within_s):
                return False
            self._connection.push(self._sub, await self._spool.take())
        self._spool.close()
        return self._connection.live
