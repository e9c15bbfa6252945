"""Client ids: issued to a user by the API, verified by the gateway at every connect.

Every function takes an async psycopg connection and leaves the commit to its caller, but for `register`,
which opens its own transaction (or a savepoint in the caller's). Whoever revokes one
announces it (`revocations`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row

from cloudsync.errors import ClientRefused, DatabaseAway, LimitReached, TenantDisabled
from cloudsync.tokens import Principal

CLIENTS_PER_USER: Final = 100
UNSEEN_S: Final = 600
"""Who was not seen for so long is not connected: gateways say twice as often who is."""
_FORM: Final = re.compile(r"c_[A-Za-z0-9_-]{22}\Z")


class Client(msgspec.Struct, frozen=True):
    """A device or process of one user."""

    client_id: str
    name: str | None
    platform: str | None
    created_at: datetime
    last_seen_at: datetime | None


class Registration(NamedTuple):
    """A new client, and the id of the one that was revoked to give it a place, if one was."""

    client: Client
    displaced: str | None


async def register(
    conn: AsyncConnection[Any],
    principal: Principal,
    *,
    name: str | None = None,
    platform: str | None = None,
    ephemeral: bool = False,
) -> Registration:
    """A new client id for the principal; `ephemeral`: of a process that keeps nothing beyond its end.

    At 100 live clients of one user the ephemeral one that was unseen for longest is revoked, if that is ten
    minutes at least: a process that died has left it. Raises LimitReached if there is none.
    """
    async with conn.transaction(), conn.cursor(row_factory=class_row(Client)) as cursor:
        # The count needs a snapshot taken after the lock, hence two statements.
        await cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
            (f"cloudsync clients\x1f{principal.tenant}\x1f{principal.user}",),
        )
        displaced = await _displace(conn, principal)
        await cursor.execute(
            """
            INSERT INTO cloudsync.clients (client_id, tenant_id, user_id, name, platform, ephemeral)
            SELECT %(id)s, %(tenant)s, %(user)s, %(name)s, %(platform)s, %(ephemeral)s
            WHERE (SELECT count(*) FROM cloudsync.clients
                   WHERE tenant_id = %(tenant)s AND user_id = %(user)s AND revoked_at IS NULL) < %(limit)s
            RETURNING client_id, name, platform, created_at, last_seen_at
            """,
            {
                "id": f"c_{secrets.token_urlsafe(16)}",
                "tenant": principal.tenant,
                "user": principal.user,
                "name": name,
                "platform": platform,
                "ephemeral": ephemeral,
                "limit": CLIENTS_PER_USER,
            },
        )
        client = await cursor.fetchone()
    if client is None:
        raise LimitReached(
            f"A user may have at most {CLIENTS_PER_USER} clients.",
            hint="Revoke one that is no longer used: DELETE /v1/clients/{id}.",
        )
    return Registration(client, displaced)


async def _displace(conn: AsyncConnection[Any], principal: Principal) -> str | None:
    """Make a place for one more if there is none: the id that is revoked for it."""
    cursor = await conn.execute(
        """
        WITH live AS (
            SELECT client_id, ephemeral, coalesce(last_seen_at, created_at) AS seen_at FROM cloudsync.clients
            WHERE tenant_id = %(tenant)s AND user_id = %(user)s AND revoked_at IS NULL)
        UPDATE cloudsync.clients SET revoked_at = now()
        WHERE (SELECT count(*) FROM live) >= %(limit)s
          AND client_id = (SELECT client_id FROM live WHERE ephemeral AND seen_at < now() - %(unseen)s
                           ORDER BY seen_at, client_id LIMIT 1)
          -- Once more, of the row as it is: it may just have been stamped.
          AND revoked_at IS NULL AND coalesce(last_seen_at, created_at) < now() - %(unseen)s
        RETURNING client_id
        """,
        {
            "tenant": principal.tenant,
            "user": principal.user,
            "limit": CLIENTS_PER_USER,
            "unseen": timedelta(seconds=UNSEEN_S),
        },
    )
    row = await cursor.fetchone()
    return None if row is None else str(row[0])


async def list_clients(conn: AsyncConnection[Any], principal: Principal) -> list[Client]:
    """The principal's live clients, oldest first."""
    async with conn.cursor(row_factory=class_row(Client)) as cursor:
        await cursor.execute(
            """
            SELECT client_id, name, platform, created_at, last_seen_at FROM cloudsync.clients
            WHERE tenant_id = %s AND user_id = %s AND revoked_at IS NULL
            ORDER BY created_at, client_id
            """,
            (principal.tenant, principal.user),
        )
        return await cursor.fetchall()


async def revoke(conn: AsyncConnection[Any], principal: Principal, client_id: str) -> bool:
    """Whether the client was the principal's; it is revoked from now on. A repeat says the same again."""
    if not _FORM.match(client_id):
        return False
    cursor = await conn.execute(
        """
        UPDATE cloudsync.clients SET revoked_at = coalesce(revoked_at, now())
        WHERE client_id = %s AND tenant_id = %s AND user_id = %s
        """,
        (client_id, principal.tenant, principal.user),
    )
    return cursor.rowcount == 1


async def verify(
    conn: AsyncConnection[Any], principal: Principal, client_id: str, *, shared: bool = True
) -> int:
    """Let the principal's own live client pass; the number of its last change.

    The table of tenants counts in the shared database alone: a copy of it in a tenant's own says nothing.
    Raises TenantDisabled, DatabaseAway if the tenant has a database of its own and this is the shared one, or
    ClientRefused, the same for every other reason.
    """
    if not _FORM.match(client_id):
        raise ClientRefused
    cursor = await conn.execute(
        """
        SELECT (SELECT last_mutation FROM cloudsync.clients
                WHERE client_id = %(client)s AND tenant_id = %(tenant)s AND user_id = %(user)s
                  AND revoked_at IS NULL),
               EXISTS (SELECT FROM cloudsync.tenants WHERE id = %(tenant)s AND status <> 'active'),
               EXISTS (SELECT FROM cloudsync.tenants WHERE id = %(tenant)s AND database IS NOT NULL)
        """,
        {"client": client_id, "tenant": principal.tenant, "user": principal.user},
    )
    row = await cursor.fetchone()
    last_mutation, disabled, elsewhere = row if row is not None else (None, False, False)
    if shared and disabled:
        raise TenantDisabled
    if shared and elsewhere:
        raise DatabaseAway
    if last_mutation is None:
        raise ClientRefused
    return int(last_mutation)


async def seen(conn: AsyncConnection[Any], ids: Iterable[str]) -> None:
    """Stamp clients as seen now, all in one statement, but for those whose write is under way.

    Gateways do it at least every `UNSEEN_S / 2`.
    """
    await conn.execute(
        """
        UPDATE cloudsync.clients AS c SET last_seen_at = now()
        FROM (SELECT client_id FROM cloudsync.clients WHERE client_id = ANY(%s)
              FOR NO KEY UPDATE SKIP LOCKED) AS locked -- nobody waits for this, nor this for anybody
        WHERE c.client_id = locked.client_id
        """,
        (list(ids),),
    )
