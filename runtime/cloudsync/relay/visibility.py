"""Whether transactions that were streamed have also ended for everybody else.

The WAL sender can be ahead of a commit's own bookkeeping (5 % of commits in an experiment): a streamed
commit may be missing from a snapshot taken right after. This asks once per batch, on the hot path, so it
speaks to libpq directly: a prepared statement, one round trip, no cursor objects.
"""

from __future__ import annotations

import asyncio
from typing import Final

from psycopg import pq
from psycopg.conninfo import make_conninfo

from cloudsync.errors import DatabaseUnreachable
from cloudsync.relay.wal import StreamEnded

_STATEMENT: Final = b"visible"
_RETRY_S: Final = 0.0005


class VisibilityCheck:
    """A connection to the primary that waits until transactions are visible to every later snapshot."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: pq.abc.PGconn | None = None

    def connect(self) -> None:
        """Blocking: call it in a thread. Raises DatabaseUnreachable."""
        conninfo = make_conninfo(self._dsn, application_name="cloudsync-relay")
        connection = pq.PGconn.connect(conninfo.encode())
        if connection.status != pq.ConnStatus.OK:
            message = connection.get_error_message().strip()
            connection.finish()
            raise DatabaseUnreachable(f"The relay cannot connect: {message}")
        connection.prepare(_STATEMENT, b"SELECT pg_current_snapshot()::text")
        connection.nonblocking = 1
        self._connection = connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.finish()
            self._connection = None

    async def wait(self, xids: set[int]) -> None:
        """Return once every transaction of `xids` has ended. Raises StreamEnded if the connection is lost."""
        newest = max(xids)
        while True:
            _, xmax, running = (await self._snapshot()).split(b":")
            if newest < int(xmax) and (not running or xids.isdisjoint(map(int, running.split(b",")))):
                return
            await asyncio.sleep(_RETRY_S)

    async def _snapshot(self) -> bytes:
        connection = self._connection
        if connection is None:
            raise StreamEnded("The connection for snapshots is closed.")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            try:
                connection.consume_input()
                if not connection.is_busy() and not answered.done():
                    answered.set_result(None)
            except Exception as error:  # noqa: BLE001 - raised where it is awaited
                if not answered.done():
                    answered.set_exception(StreamEnded(str(error)))

        try:
            connection.send_query_prepared(_STATEMENT, [])
            connection.flush()
        except Exception as error:
            raise StreamEnded(str(error)) from error
        descriptor = connection.socket  # a lost connection has none to ask for
        loop.add_reader(descriptor, readable)
        try:
            await answered
        finally:
            loop.remove_reader(descriptor)
        value: bytes | None = None
        while (result := connection.get_result()) is not None:
            if result.status != pq.ExecStatus.TUPLES_OK:
                raise StreamEnded(result.get_error_message().strip())
            value = result.get_value(0, 0)
        if value is None:
            raise StreamEnded("PostgreSQL did not answer.")
        return value
