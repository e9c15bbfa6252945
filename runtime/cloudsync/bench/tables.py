"""The table that benchmarks write to, and what SQL says about its rows."""

from __future__ import annotations

import json
from typing import Any, Final

import psycopg

from cloudsync.bench.payloads import SENTINELS
from cloudsync.bench.target import TENANT, Target

TABLE: Final = "public.cloudsync_bench"
FIRST_ROW: Final = 1000
"""Keys of ordinary rows begin here; below are the sentinels, one per shard."""

_CREATE: Final = f"""
DROP TABLE IF EXISTS {TABLE};
CREATE TABLE {TABLE} (
    id bigint PRIMARY KEY,
    title text NOT NULL,
    status text NOT NULL DEFAULT 'open',
    amount numeric(12, 2) NOT NULL DEFAULT 0,
    quantity integer NOT NULL DEFAULT 0,
    note text,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
"""
_INSERT: Final = f"""
INSERT INTO {TABLE} (id, title, amount, note)
SELECT id, 'Item ' || id, id %% 1000, repeat('note ', 8) FROM generate_series(%s::bigint, %s::bigint) AS id
"""  # noqa: S608 - a constant
_VERSIONS: Final = """
SELECT s.key, s.version, s.deleted_at IS NOT NULL FROM cloudsync.row_state AS s
JOIN cloudsync.tracked_tables AS t USING (table_id) WHERE t.relid = %s::regclass
"""

Connection = psycopg.Connection[tuple[Any, ...]]


class BenchTable:
    """The table on a target's database; dropped at the end of the `with` block."""

    def __init__(self, target: Target, *, rows: int) -> None:
        self.rows = rows
        self.connection: Connection = psycopg.connect(target.postgres_url, autocommit=True)

    def __enter__(self) -> BenchTable:
        self.connection.execute(_CREATE)
        self.connection.execute(_INSERT, (0, SENTINELS - 1))
        self.connection.execute(_INSERT, (FIRST_ROW, FIRST_ROW + self.rows - 1))
        self.connection.execute(f"VACUUM ANALYZE {TABLE}")
        self.track()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.connection.broken:
            self.connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        self.connection.close()

    def track(self) -> None:
        self.connection.execute("SELECT cloudsync.track(%s::regclass, tenant => %s)", (TABLE, TENANT))

    def write_sentinels(self) -> dict[int, int]:
        """Change one row in every shard; their versions now."""
        self.connection.execute(
            f"UPDATE {TABLE} SET quantity = quantity + 1, updated_at = now() WHERE id < %s",  # noqa: S608
            (SENTINELS,),
        )
        versions, _ = self.versions()
        return {number: versions[str(number)] for number in range(SENTINELS)}

    def versions(self) -> tuple[dict[str, int], list[str]]:
        """The version of every row that ever changed, by key, and the keys of those that are deleted."""
        versions: dict[str, int] = {}
        deleted: list[str] = []
        for text, version, gone in self.connection.execute(_VERSIONS, (TABLE,)):
            key = str(json.loads(text)[0])
            versions[key] = version
            if gone:
                deleted.append(key)
        return versions, deleted
