"""The audit log as JSON lines, in the order in which it was written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import msgspec
from psycopg import Connection

_FETCH: Final = 2000
_ROWS: Final = """
SELECT at, happened_at, writer, sequence, tenant_id, user_id, client_id, kind, table_name, key::text,
       event_id, outcome, counts::text, digest
FROM cloudsync.audit_log
WHERE (%(tenant)s::text IS NULL OR tenant_id = %(tenant)s)
  AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)
  AND (%(until)s::timestamptz IS NULL OR at < %(until)s)
ORDER BY at, writer, sequence
"""
_encode = msgspec.json.Encoder().encode


def export(
    connection: Connection[Any], *, tenant: str | None, since: datetime | None, until: datetime | None
) -> Iterator[bytes]:
    """One line a row, without its line break; of one tenant, recorded in a span of time.

    Raises psycopg.Error.
    """
    connection.execute("SET TIME ZONE 'UTC'")
    with connection.cursor(name="cloudsync_audit") as cursor:
        cursor.itersize = _FETCH
        cursor.execute(_ROWS, {"tenant": tenant, "since": since, "until": until})
        for row in cursor:
            (at, happened, writer, sequence, of, user, client, kind, table, key, event, outcome, counts,
             digest) = row  # fmt: skip
            line = {
                "at": at,
                "happened_at": happened,
                "kind": kind,
                "tenant": of,
                "user": user,
                "client": client,
                "table": table,
                "key": msgspec.Raw(key.encode()) if key is not None else None,
                "event": event,
                "outcome": outcome,
                "counts": msgspec.Raw(counts.encode()) if counts is not None else None,
                "writer": writer,
                "sequence": sequence,
                "digest": bytes(digest).hex(),
            }
            yield _encode({name: value for name, value in line.items() if value is not None})
