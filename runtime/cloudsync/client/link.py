"""Carries a session over one socket: reads, writes, and acknowledges in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Never

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from cloudsync.client.actions import Action
from cloudsync.client.session import Session
from cloudsync.errors import CloudSyncError

WELCOME_TIMEOUT_S: Final = 10.0


class Link:
    """One connection of a session, from greeting to loss. `act` is called with every action."""

    def __init__(
        self,
        session: Session,
        socket: ClientConnection,
        act: Callable[[Action], None],
        reading: asyncio.Event,
    ) -> None:
        self._session = session
        self._socket = socket
        self._act = act
        self._reading = reading
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._failure: CloudSyncError | None = None

    def wake(self) -> None:
        """The session has something to send, or to do later."""
        self._follow_up()

    def edited(self) -> None:
        """Texts were edited: send what may go."""
        self._do(lambda: self._session.send_edits(self._loop.time()))

    def leave(self) -> None:
        """Close from this side; `carry` then ends as with any other close."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._socket.close())

    async def carry(self) -> Never:
        """Run until the connection ends.

        Raises ConnectionClosed, TimeoutError, ProtocolBroken or StoreFailed.
        """
        session, socket = self._session, self._socket
        session.opened()
        self._wake.set()
        writer = self._loop.create_task(self._write(), name="cloudsync client writer")
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                while not session.welcomed:
                    self._take(await socket.recv(decode=False))
            while True:
                await self._reading.wait()
                self._take(await socket.recv(decode=False))
        except ConnectionClosed:
            if self._failure is not None:
                raise self._failure from None
            raise
        finally:
            await self._end(writer)

    async def _end(self, writer: asyncio.Task[None]) -> None:
        try:
            self._session.lost()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            await self._socket.close()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            frames = self._session.outgoing.copy()
            self._session.outgoing.clear()
            for frame in frames:
                await self._socket.send(frame, text=True)

    def _take(self, data: bytes) -> None:
        for action in self._session.receive(data, now_s=self._loop.time(), wall_us=time.time_ns() // 1000):
            self._act(action)
        self._follow_up()

    def _due(self) -> None:
        self._timer = None
        self._do(lambda: self._session.tick(self._loop.time()))

    def _do(self, step: Callable[[], None]) -> None:
        try:
            step()
        except CloudSyncError as error:
            self._failure = error
            self.leave()
            return
        self._follow_up()

    def _follow_up(self) -> None:
        if self._session.outgoing:
            self._wake.set()
        deadline_s = self._session.deadline_s
        if deadline_s is None:
            return
        # A timer that comes too early (what it was for is done) looks again and is set anew.
        if self._timer is not None:
            if self._timer.when() <= deadline_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline_s, self._due)
